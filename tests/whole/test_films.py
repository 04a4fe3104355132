"""Films through the configuration: what a folder is, what is asked of it, and what it would take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import gguf_files
import ltx2_files
import numpy as np
import pytest
import torch
from film_peers import TinyFilms, assert_same
from gguf_files import lightricks_name
from picture_parity import photograph
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diffuse
from diffuse.checkpoints.single_file import SingleFile
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


def test_a_transformer_in_few_bits(films: TinyFilms, tmp_path: Path) -> None:
    """Published as GGUF or as fp8 with scales, under the names of Lightricks; and stored in fp8."""
    source = load_file(films.folder / "transformer" / "diffusion_pytorch_model.safetensors")
    weights = {f"model.diffusion_model.{lightricks_name(key)}": value for key, value in source.items()}
    blocks = [key for key in weights if "transformer_blocks" in key and key.endswith(".weight")]
    linear = [key for key in blocks if weights[key].ndim == 2]
    meant = gguf_files.write(tmp_path / "a.gguf", weights, dict.fromkeys(linear, "Q8_0"), "ltxv")
    save_file(meant, tmp_path / "a.safetensors")
    options: dict[str, Any] = {**SMALL, "num_inference_steps": 1, "hardware": "cpu", "progress": False}

    def made(*overrides: str) -> diffuse.Generation:
        return diffuse.txt2vid("the robot", model=films.folder, overrides=overrides, **options)

    pair = [made(f"model.transformer.source={tmp_path / name}") for name in ("a.gguf", "a.safetensors")]
    assert np.array_equal(pair[0].frames, pair[1].frames) and np.array_equal(pair[0].sound, pair[1].sound)
    stored = made("memory_profile.storage=fp8", "memory_profile=streaming")
    assert stored.record["quantized"].keys() == {"text_encoder", "transformer"}

    whole = ltx2_files.write(films.folder, tmp_path / "whole.safetensors")
    with safe_open(whole, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    scales = {key: tensors[key].float().abs().amax() / 448 for key in linear}
    rounded = {key: (tensors[key] / scale).to(torch.float8_e4m3fn) for key, scale in scales.items()}
    inputs = {key.replace(".weight", ".input_scale"): torch.ones(()) for key in linear}
    save_file(
        {**tensors, **rounded, **inputs, **{f"{key}_scale": scale for key, scale in scales.items()}},
        tmp_path / "fp8.safetensors",
        metadata,
    )
    (few,) = SingleFile(tmp_path / "fp8.safetensors", "fp8").tensor_files("transformer")
    read = few.read(dict.fromkeys(source, torch.float32), torch.device("cpu"))
    for key, published in zip(weights, source, strict=True):
        product = rounded[key].float() * scales[key] if key in rounded else tensors[key].float()
        assert torch.equal(read[published], product), published


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
