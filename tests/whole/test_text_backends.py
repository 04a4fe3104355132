"""Films whose prompts were encoded elsewhere: by a file, by a service, by noise."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import film_peers
import numpy as np
import pytest
import torch
from command import diffuse as command
from film_peers import edited

import diffuse
from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError
from diffuse.plan.make_plan import open_setting
from diffuse.run.generation import Generation
from diffuse.run.text_encoder import open_text_encoder
from diffuse.service.encode import encode_prompts
from diffuse.service.serve import TextServer
from diffuse.service.settings import ServiceSettings

PROMPT, NEGATIVE = "the robot", "ring"
SMALL = [
    *("width=64", "height=64", "num_frames=9", "num_inference_steps=1", "seed=3", "hardware=cpu"),
    *("modality_scale=1", "stg_scale=0", "stg_blocks=[1]", "guidance_rescale=0", "tracking=none"),
]
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film_peers.tiny("2.0", tmp_path_factory).folder


@pytest.fixture(scope="module")
def without_encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model on a machine that has not fetched its text encoder."""
    target = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    return target


def overrides(folder: Path, *more: str, prompt: str = PROMPT, negative: str = NEGATIVE) -> list[str]:
    return ["model=ltx2", f"model.source={folder}", f"prompt={prompt}", f"negative_prompt={negative}", *SMALL, *more]


def film(folder: Path, *more: str, **texts: str) -> Generation:
    from diffuse.run.run import generate

    given = overrides(folder, *more, **texts)
    cfg = compose_config(given)
    (made,) = generate(cfg, draft_requests(cfg), overrides=given)
    return made


@pytest.fixture(scope="module")
def local(folder: Path) -> Generation:
    return film(folder)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of the prompts, by this model's text encoder."""
    cfg = compose_config(overrides(folder))
    path: Path = encode_prompts(cfg, draft_requests(cfg), tmp_path_factory.mktemp("file") / "prompts.safetensors")
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The service, with a token."""
    cfg = compose_config(["model=ltx2", f"model.source={folder}", "hardware=cpu"])
    server = TextServer(open_text_encoder(cfg), ServiceSettings(port=0), TOKEN)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.url
    server.stop()
    thread.join()


def same(made: Generation, local: Generation) -> None:
    assert made.frames.std() > 20 and np.array_equal(made.frames, local.frames)
    assert made.sound is not None and local.sound is not None and np.array_equal(made.sound, local.sound)
    for name, latents in local.latents.items():
        assert torch.equal(made.latents[name], latents)


def test_a_file_gives_the_local_film_to_the_bit(without_encoder: Path, file: Path, local: Generation) -> None:
    made = film(without_encoder, "text_backend=precomputed", f"text_backend.file={file}")
    same(made, local)
    record = made.record["text_backend"]
    assert (record["name"], record["file"], set(record["embeddings"])) == ("precomputed", str(file), {PROMPT, NEGATIVE})
    assert local.record["text_backend"] == {"name": "gemma3"} and "text_backend" not in local.record["config"]
    assert "text_encoder" in local.record["hardware"]["dtypes"]
    assert "text_encoder" not in made.record["hardware"]["dtypes"]


def test_a_service_gives_the_local_film_to_the_bit(
    without_encoder: Path, url: str, local: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = film(without_encoder, "text_backend=api", f"text_backend.url={url}", f"text_backend.token={TOKEN}")
    same(made, local)
    record = json.dumps(made.record)
    assert made.record["text_backend"]["url"] == url and TOKEN not in record
    assert made.record["text_backend"]["text_encoder"]["text_encoder"]
    monkeypatch.setenv("DIFFUSE_TEXT_TOKEN", TOKEN)
    same(film(without_encoder, "text_backend=api", f"text_backend.url={url}/encode"), local)
