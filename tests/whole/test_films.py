"""Films through the configuration: what a folder is, what is asked of it, and what it would take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import numpy as np
import pytest
from film_peers import TinyFilms, assert_same
from picture_parity import photograph

import diffuse
from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError
from diffuse.plan.make_plan import open_setting
from diffuse.run.model_auto import family_option

SMALL = {"width": 96, "height": 64, "num_frames": 9, "num_inference_steps": 2, "stg_blocks": [1], "seed": 3}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny("2.0", tmp_path_factory)


def test_a_folder_makes_the_film_that_diffusers_makes(films: TinyFilms) -> None:
    """With the published settings, and texts of their full length."""
    options: dict[str, Any] = {**SMALL, "hardware": "cpu", "progress": False}
    made = diffuse.txt2vid("the robot", model=films.folder, negative_prompt="ring", **options)
    request = replace(
        film_peers.REQUEST,
        guidance_rescale=0.7,
        modality_scale=3.0,
        stg_scale=1.0,
        stg_blocks=(1,),
    )
    assert_same(made, replace(films, tokens=1024, _texts={}).film(request))
    assert (made.fps, made.sample_rate, made.record["config"]["model"]["name"]) == (24.0, 24000, "ltx2")
    assert made.record["request"]["audio_modality_scale"] == 3.0


def test_a_picture_is_the_first_frame(films: TinyFilms, tmp_path: Path) -> None:
    """Stretched to the film's size; there is no strength that would change it."""
    photo = photograph(tmp_path / "photo.png", 120, 70)
    options: dict[str, Any] = {**SMALL, "hardware": "cpu", "progress": False, "negative_prompt": "ring"}
    made = diffuse.img2vid("the robot", photo, model=films.folder, resize="crop", **options)
    assert made.record["request"]["strength"] is None and made.record["request"]["input_crf"] == 33
    plain = diffuse.img2vid("the robot", photo, model=films.folder, resize="crop", input_crf=0, **options)
    assert np.abs(made.frames.astype(int) - plain.frames).max() > 1
    without = diffuse.txt2vid("the robot", model=films.folder, **options)
    assert made.frames.shape == without.frames.shape and made.frames.std() > 20
    assert (made.latents["video"][:, :, 0] - without.latents["video"][:, :, 0]).abs().min() > 0


def test_a_model_of_pictures_makes_no_film() -> None:
    with pytest.raises(ConfigError, match="model=tiny: makes pictures; call txt2img"):
        diffuse.txt2vid("a cat", model="tiny", progress=False)


@pytest.mark.parametrize(
    ("pipeline", "vocoder", "option"),
    [
        ("LTX2Pipeline", "LTX2Vocoder", "ltx2"),
        ("LTX2Pipeline", "LTX2VocoderWithBWE", "ltx2_3"),
        ("LTX2ImageToVideoPipeline", "LTX2VocoderWithBWE", "ltx2_3"),
    ],
)
def test_a_checkpoint_says_its_version(pipeline: str, vocoder: str, option: str) -> None:
    assert family_option({"_class_name": pipeline, "vocoder": ["ltx2", vocoder]}, "folder") == option


@pytest.mark.parametrize(
    "field", ["num_frames=9", "fps=24", "audio_guidance_scale=2", "modality_scale=2", "stg_scale=1", "stg_blocks=[1]"]
)
def test_a_field_of_films_is_refused_for_pictures(field: str) -> None:
    name = field.partition("=")[0]
    with pytest.raises(ConfigError, match=f"model=tiny knows no {name}"):
        diffuse.txt2img("a cat", model="tiny", overrides=[field], progress=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("modality_scale=0.5", "modality_scale=0.5: should be a number of 1 or more"),
        ("fps=0", "fps=0.0: should be a number above 0, up to 1000"),
        ("width=31", "width=31: should be a multiple of 32 for model=ltx2; try 32"),
        ("clip_skip=1", "model=ltx2 knows no clip_skip"),
        ("strength=0.6", "model=ltx2 knows no strength"),
        ("refiner=sdxl", "refiner: LTX2 neither has one nor is one"),
    ],
)
def test_a_film_that_cannot_be_made_is_refused(films: TinyFilms, given: str, said: str, tmp_path: Path) -> None:
    overrides = [f"{name}={value}".replace(" ", "") for name, value in SMALL.items() if not given.startswith(name)]
    if given.startswith("strength"):
        overrides.append(f"input_image={photograph(tmp_path / 'photo.png', 96, 64)}")
    if given.startswith("refiner"):
        overrides += [f"refiner.source={films.folder}", "denoising_end=0.5"]
    with pytest.raises(ConfigError) as caught:
        diffuse.txt2img("a cat", model=films.folder, hardware="cpu", overrides=[*overrides, given], progress=False)
    assert said in str(caught.value)


def test_a_film_is_predicted(films: TinyFilms) -> None:
    fields = [f"{name}={value}".replace(" ", "") for name, value in SMALL.items()]
    fields += ["memory_profile=streaming", "memory_profile.tiled_decode=true", "memory_profile.vae_tile_size=2"]
    cfg = compose_config(["model=ltx2", f"model.source={films.folder}", "hardware=cpu", "prompt=x", *fields])
    setting = open_setting(cfg)
    prediction = setting.predict(setting.request(draft_requests(cfg)[0]))
    assert [phase.name for phase in prediction.phases] == ["encode", "denoise", "decode"]
    assert prediction.calls == 2
    assert {work.component for phase in prediction.phases for work in phase.work} == {
        "text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder"
    }  # fmt: skip
    assert all(component.blocks for component in prediction.components) and prediction.device_bytes > 0
