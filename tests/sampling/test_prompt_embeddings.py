"""Prompt embeddings out of Python and back in: the same pictures to the bit, and shapes that are checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import oracle_sdxl
import pytest
import torch
from command import diffuse as command

import diffuse
from diffuse.errors import ConfigError

QUICK: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "progress": False}


@pytest.fixture(scope="module")
def tiny() -> diffuse.Pipeline:
    return diffuse.load_pipeline("tiny", hardware="cpu", tracking="none")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> diffuse.Pipeline:
    folder = oracle_sdxl.build(tmp_path_factory.mktemp("sdxl"), oracle_sdxl.Variant())
    return diffuse.load_pipeline(folder, hardware="cpu", tracking="none", width=64, height=64)


@pytest.mark.parametrize("fields", [{}, {"negative_prompt": "blue", "prompt_2": "a dog"}])
def test_sdxl_has_pooled_ones_too(sdxl: diffuse.Pipeline, fields: dict[str, Any]) -> None:
    embeddings = sdxl.encode("a cat", **fields)
    assert len(embeddings.as_arguments()) == 4
    made = sdxl(**embeddings.as_arguments(), **QUICK)
    assert np.array_equal(made.frames, sdxl("a cat", **fields, **QUICK).frames)
    for name, said in (("pooled_prompt_embeds", "is needed"), ("negative_pooled_prompt_embeds", "or guidance_scale=1")):
        with pytest.raises(ConfigError, match=f"{name}.*{said}"):
            sdxl(**{**embeddings.as_arguments(), name: None}, **QUICK)
    with pytest.raises(ConfigError, match="pooled_prompt_embeds are"):
        sdxl(**{**embeddings.as_arguments(), "pooled_prompt_embeds": torch.zeros(1, 3)}, **QUICK)


@pytest.mark.parametrize(
    "fields",
    [{}, {"negative_prompt": "blue"}, {"negative_prompt": "a cat"}, {"guidance_scale": 1.0}, {"num_images": 2}],
)
def test_embeddings_make_the_picture_of_the_prompt(tiny: diffuse.Pipeline, fields: dict[str, Any]) -> None:
    texts = {name: fields[name] for name in fields if name == "negative_prompt"}
    others = {name: fields[name] for name in fields if name not in texts}
    embeddings = tiny.encode("a cat", **texts)
    made, known = tiny(**embeddings.as_arguments(), **others, **QUICK), tiny("a cat", **fields, **QUICK)
    assert np.array_equal(made.frames, known.frames)


def test_they_are_recorded_by_digest_and_not_reproduced(tiny: diffuse.Pipeline, tmp_path: Path) -> None:
    embeddings = tiny.encode("a cat")
    made = tiny(**embeddings.as_arguments(), **QUICK, save=tmp_path)
    recorded = made.record["inputs"]["prompt_embeds"]
    digest = hashlib.sha256(embeddings.prompt_embeds.numpy().tobytes()).hexdigest()
    assert recorded == {"sha256": digest, "shape": list(embeddings.prompt_embeds.shape)}
    done = command("reproduce", made.paths[0], cwd=tmp_path)
    assert done.status == 2 and "prompt embeddings given in Python" in done.err


def test_changed_embeddings_change_the_picture(tiny: diffuse.Pipeline) -> None:
    cat, dog = tiny.encode("a cat"), tiny.encode("a dog")
    between = {name: (value + dog.as_arguments()[name]) / 2 for name, value in cat.as_arguments().items()}
    made = tiny(**between, **QUICK).frames
    assert not np.array_equal(made, tiny("a cat", **QUICK).frames)
    arrays = {name: value.numpy() for name, value in between.items()}
    assert np.array_equal(tiny(**arrays, **QUICK).frames, made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_embeds": torch.zeros(2, 77, 64)}, "this model takes"),
        ({"prompt_embeds": torch.zeros(77, 64)}, "this model takes"),
        ({"prompt_embeds": torch.zeros(1, 77, 7)}, "this model takes"),
        ({"prompt_embeds": "a cat"}, "should be a tensor"),
        ({"prompt_embeds": None}, "goes with prompt_embeds"),
        ({"negative_prompt_embeds": None}, "is needed beside prompt_embeds"),
        ({"negative_prompt_embeds": torch.zeros(1, 5, 64)}, "need the same shape"),
        ({"pooled_prompt_embeds": torch.zeros(1, 8)}, "takes no pooled text"),
        ({"prompt": "a cat"}, "leave one of them out"),
        ({"clip_skip": 1}, "leave one of them out"),
    ],
)
def test_what_does_not_fit_is_refused(tiny: diffuse.Pipeline, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny(**{**tiny.encode("a cat").as_arguments(), **QUICK, **change})


def test_nan_is_refused(tiny: diffuse.Pipeline) -> None:
    given = tiny.encode("a cat").as_arguments()
    given["prompt_embeds"][0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="holds NaN"):
        tiny(**given, **QUICK)


@pytest.mark.parametrize("override", ["prompt_embeds=x", "prompt_embeds=x,y"])
def test_the_command_and_its_sweeps_have_none(override: str, tmp_path: Path) -> None:
    done = command("-m", override, cwd=tmp_path)
    assert done.status == 2 and "there is no field" in done.err
