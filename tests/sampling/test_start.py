"""Samplers that start from a picture, and that have a part of it put back after each step, against diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import oracle
import picture_parity
import pytest
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from oracle import Variant
from picture_parity import assert_same, made, photograph, stencil

# One of each kind: state that grows with the noise, noise in each step, two calls a step, memory of earlier steps, and
# steps that are corrected afterwards.
SAMPLERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = Variant(
        channels=(16, 32), heads=2, cross=(True, True), vae_channels=(8, 8, 16), prediction_type="epsilon"
    )
    return oracle.build(tmp_path_factory.mktemp("checkpoint"), variant)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("inputs")
    return {"input_image": photograph(where / "photo.png"), "mask_image": stencil(where / "mask.png")}


REQUEST: dict[str, Any] = {"num_inference_steps": 5, "strength": 0.62, "guidance_scale": 4.0, "seed": 6}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image(sampler: str, folder: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    image = inputs["input_image"]
    theirs = picture_parity.made_by_diffusers(
        StableDiffusionImg2ImgPipeline, folder, scheduler=getattr(diffusers, SAMPLERS[sampler]), image=image, **REQUEST
    )
    assert_same(made(folder, tmp_path / "out", input_image=image, scheduler=sampler, **REQUEST), theirs)


@pytest.mark.parametrize("strength", [0.62, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting(sampler: str, strength: float, folder: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    request = {**REQUEST, "strength": strength}
    theirs = picture_parity.made_by_diffusers(
        StableDiffusionInpaintPipeline,
        folder,
        scheduler=getattr(diffusers, SAMPLERS[sampler]),
        image=inputs["input_image"],
        mask_image=inputs["mask_image"],
        width=64,
        height=64,
        **request,
    )
    assert_same(made(folder, tmp_path / "out", **inputs, scheduler=sampler, **request), theirs)
