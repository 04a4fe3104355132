"""Films whose prompts were encoded elsewhere: by a file, by a service, by noise."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import numpy as np
import pytest
import torch
from command import diffuse as command
from diffusers.pipelines.ltx2 import LTX2Pipeline

from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError
from diffuse.pipelines import ltx2_prompts
from diffuse.pipelines.families import component_names
from diffuse.plan.make_plan import open_setting
from diffuse.record.differences import record_differences
from diffuse.reproduce.recorded_config import restore_config
from diffuse.run.generation import Generation
from diffuse.run.prepare import prepare
from diffuse.run.run import generate
from diffuse.run.text_encoder import open_text_encoder
from diffuse.sampling import prompt_cache
from diffuse.service.encode import encode_prompts
from diffuse.service.serve import TextServer
from diffuse.service.settings import ServiceSettings
from diffuse.sweep.job_folder import job_identity
from diffuse.text_backends.embeddings import TextEncoderIdentity
from diffuse.text_backends.forms import read_embeddings_file, write_embeddings_file

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
def server(folder: Path) -> Iterator[TextServer]:
    """The service, with a token."""
    cfg = compose_config(["model=ltx2", f"model.source={folder}", "hardware=cpu"])
    server = TextServer(open_text_encoder(cfg), ServiceSettings(port=0), TOKEN)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
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
    without_encoder: Path, server: TextServer, local: Generation
) -> None:
    """It is asked once for each prompt, however many films are made of it."""
    api = ["text_backend=api", f"text_backend.url={server.url}", f"text_backend.token={TOKEN}"]
    film(without_encoder, *api, "seed=4")
    made = film(without_encoder, *api)
    same(made, local)
    assert server.queue.encoded == 2
    assert made.record["text_backend"]["url"] == server.url and TOKEN not in json.dumps(made.record)
    assert made.record["text_backend"]["text_encoder"]["text_encoder"]
    with pytest.raises(ConfigError, match="was made with embeddings of a text service; add text_backend=auto"):
        restore_config(made.record, compose_config([]), set())
    own = compose_config(["text_backend=random"])
    assert restore_config(made.record, own, {"text_backend"})[0].text_backend.name == "random"
    assert "text_backend: gemma3 then, api now" in record_differences(local.record, made.record)


def test_a_prompt_in_use_keeps_its_record(without_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others were encoded beside it, as a sweep over prompts does with one negative prompt."""
    for module in (ltx2_prompts, prompt_cache):
        monkeypatch.setattr(module, "MAX_PROMPTS", 2)
    cfg = compose_config(overrides(without_encoder, "text_backend=random"))
    prompts = prepare(cfg, draft_requests(cfg)[0]).opened.pipeline.prompts
    for number in range(5):
        texts = [f"{number}", NEGATIVE]
        prompts.encode(texts)
        assert set(prompts.as_record(texts)["embeddings"]) == set(texts)


def test_noise_says_that_it_is(without_encoder: Path, local: Generation) -> None:
    made = film(without_encoder, "text_backend=random", "text_backend.seed=1")
    assert any(line.startswith("text_backend=random: the embeddings are noise") for line in made.warnings)
    assert not np.array_equal(made.frames, local.frames)


def test_neither_planned_nor_fetched(without_encoder: Path, folder: Path) -> None:
    for where, more in ((folder, ()), (without_encoder, ("text_backend=api", "text_backend.url=http://localhost:1"))):
        cfg = compose_config(overrides(where, *more, "memory_profile=streaming", "memory_profile.cleanup=phases"))
        setting = open_setting(cfg)
        prediction = setting.predict(setting.request(draft_requests(cfg)[0]))
        names = {each.name for each in prediction.components}
        assert ("text_encoder" in names) is not bool(more) and "connectors" in names
        fetched = {"text_encoder", "tokenizer"} & {*component_names(cfg)["model"]}
        assert fetched == (set() if more else {"text_encoder", "tokenizer"})


def changed(file: Path, target: Path, **values: Any) -> Path:
    """The embeddings of a file, of which something is otherwise."""
    embeddings = read_embeddings_file(file, "file")
    write_embeddings_file(replace(embeddings, **values), target)
    return target


def test_embeddings_of_another_model_are_refused(
    folder: Path, without_encoder: Path, file: Path, tmp_path: Path
) -> None:
    """Before any weight is read: by the text encoder where it is here, else by the connectors, unless the user vouches
    for them."""
    encoder = changed(file, tmp_path / "x.safetensors", encoder=TextEncoderIdentity("f" * 64, None, "elsewhere"))
    connectors = changed(file, tmp_path / "y.safetensors", encoder=TextEncoderIdentity("e" * 64, "f" * 64))
    for model, path, said in (
        (folder, encoder, "the embeddings are of another model (elsewhere): its text encoder ffffffffffff, and here"),
        (without_encoder, connectors, "the embeddings are of another model: its connectors ffffffffffff, and here"),
    ):
        cfg = compose_config(overrides(model, "text_backend=precomputed", f"text_backend.file={path}"))
        with pytest.raises(ConfigError) as caught:
            prepare(cfg, draft_requests(cfg)[0])
        assert str(caught.value).startswith(f"text_backend.file={path}: {said}")
    cfg.text_backend.text_encoder_sha256 = "e" * 64
    prepare(cfg, draft_requests(cfg)[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text_backend=random", "text_backend=random: is for films, and model=tiny encodes by itself"),
        ("text_backend=gemma3", "text_backend=gemma3: is for films"),
        ("text_backend=api", "text_backend=api: add text_backend.url=http://HOST:PORT"),
    ],
)
def test_a_backend_that_is_none_for_the_model(tmp_path: Path, given: str, said: str) -> None:
    """In one line of the command."""
    done = command("model=tiny", "prompt=x", "hardware=cpu", "tracking=none", given, cwd=tmp_path)
    assert done.status == 2 and done.err.startswith(f"diffuse: {said}") and len(done.err.splitlines()) == 1


def test_encode_writes_a_file_once(folder: Path, file: Path, tmp_path: Path) -> None:
    """Of the prompts of a request and its negative prompt; an existing one stays."""
    words = [*overrides(folder), "--out", str(tmp_path / "x.safetensors")]
    done = command("encode", *words, cwd=tmp_path)
    assert (done.status, done.out) == (0, f"{tmp_path / 'x.safetensors'}\n")
    written, expected = (read_embeddings_file(path, "file") for path in (tmp_path / "x.safetensors", file))
    assert written.prompts == [PROMPT, NEGATIVE] == expected.prompts
    assert [each.digest() for each in written.states] == [each.digest() for each in expected.states]
    again = command("encode", *words, cwd=tmp_path)
    assert again.status == 2 and "exists already and is not overwritten" in again.err
    other = command("encode", "model=tiny", "prompt=x", "--out", "y.safetensors", cwd=tmp_path)
    assert other.status == 2 and "model=tiny: is a model of pictures; choose one of films, such" in other.err
    nowhere = command("encode", *overrides(folder), cwd=tmp_path)
    assert nowhere.status == 2 and "add --out FILE.safetensors" in nowhere.err


def test_the_states_are_those_that_diffusers_keeps(folder: Path, file: Path, tmp_path_factory: Any) -> None:
    """`prompt_embeds` of its pipeline, without the padding in front."""
    films = replace(film_peers.tiny("2.0", tmp_path_factory), tokens=1024, _texts={})
    pipeline = LTX2Pipeline(**films.parts, scheduler=films.scheduler(True))
    theirs, mask = films._text(pipeline, PROMPT)
    ours = read_embeddings_file(file, "file").states[0]
    assert torch.equal(ours.mask.long(), mask[0].long())
    torch.testing.assert_close(ours.states, theirs[0, -len(ours.states) :].float(), rtol=1e-4, atol=1e-4)


def test_an_identity_of_earlier_sweeps_stays(folder: Path) -> None:
    plain = job_identity(resolve_config(compose_config(overrides(folder))))
    assert "text_backend" not in plain
    assert job_identity(resolve_config(compose_config(overrides(folder, "text_backend=gemma3")))) == plain
    api = ["text_backend=api", "text_backend.url=http://localhost:1", f"text_backend.token={TOKEN}"]
    found = job_identity(resolve_config(compose_config(overrides(folder, *api))))
    assert found["text_backend"]["name"] == "api" and TOKEN not in json.dumps(found)
