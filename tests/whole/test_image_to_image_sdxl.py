"""Image-to-image and inpainting with SDXL, against the pictures that diffusers makes from the same files and seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle_sdxl
import picture_parity
import pytest
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
from oracle_sdxl import Variant
from picture_parity import assert_same, photograph, stencil
from PIL import Image

SMALL: dict[str, Any] = {
    "channels": (16, 32),
    "heads": (2, 4),
    "cross": (False, True),
    "layers": (1, 2),
    "first": (16, 2),
    "second": (32, 2),
    "vae_channels": (8, 8, 16),
}
VARIANTS = {"base": Variant(**SMALL), "inpainting": Variant(**SMALL, inpaints=True)}
WIDTH, HEIGHT = 72, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = oracle_sdxl.build(tmp_path_factory.mktemp("checkpoint"), VARIANTS[name])
        return built[name]

    return build


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("inputs")
    size = WIDTH, HEIGHT
    return {"input_image": photograph(where / "photo.png", *size), "mask_image": stencil(where / "mask.png", *size)}


def made(folder: Path, out: Path, **request: Any) -> np.ndarray:
    return picture_parity.made(folder, out, model="sdxl", guidance_scale=7.5, **request)


@pytest.mark.parametrize("request_", [{}, {"strength": 0.5, "seed": 4, "negative_prompt": "the rocket"}])
def test_image_to_image(
    request_: dict[str, Any], folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = made(folder("base"), tmp_path / "out", input_image=inputs["input_image"], **request_)
    options = {"strength": 0.8, **request_}
    theirs = picture_parity.made_by_diffusers(
        StableDiffusionXLImg2ImgPipeline, folder("base"), image=inputs["input_image"], **options
    )
    assert_same(found, theirs)


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_inpainting(
    variant: str, strength: float, folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = made(folder(variant), tmp_path / "out", **inputs, strength=strength, seed=2)
    theirs = picture_parity.made_by_diffusers(
        StableDiffusionXLInpaintPipeline,
        folder(variant),
        image=inputs["input_image"],
        mask_image=inputs["mask_image"],
        strength=strength,
        seed=2,
        width=WIDTH,
        height=HEIGHT,
    )
    assert_same(found, theirs)


def test_what_is_outside_the_mask_is_kept(
    folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = made(folder("base"), tmp_path / "out", **inputs, keep_unmasked="true", num_inference_steps=1)
    photo = np.asarray(Image.open(inputs["input_image"]))
    known = np.asarray(Image.open(inputs["mask_image"])) < 128
    np.testing.assert_array_equal(found[0][known], photo[known])
