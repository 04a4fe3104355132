"""Inpainting from the command line, with ordinary and with inpainting checkpoints, against diffusers' pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import picture_parity
import pytest
from diffusers import StableDiffusionInpaintPipeline
from oracle import Variant
from picture_parity import apart, assert_same, made, photograph, refused, stencil
from PIL import Image

from diffuse.media.load import read_record

SMALL: dict[str, Any] = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
VARIANTS = {
    "ordinary": Variant(**SMALL, prediction_type="epsilon"),
    "ordinary, v prediction": Variant(
        **SMALL, scheduler={"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    ),
    "inpainting": Variant(**SMALL, prediction_type="epsilon", inpaints=True, linear_projection=False, tokenizer="fast"),
    "inpainting, four levels": Variant(inpaints=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = oracle.build(tmp_path_factory.mktemp("checkpoint"), VARIANTS[name])
        return built[name]

    return build


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("inputs")
    return {"input_image": photograph(where / "photo.png"), "mask_image": stencil(where / "mask.png")}


def theirs(folder: Path, inputs: dict[str, Path], **request: Any) -> np.ndarray:
    files = {"image": inputs["input_image"], "mask_image": inputs["mask_image"]}
    return picture_parity.made_by_diffusers(
        StableDiffusionInpaintPipeline, folder, **{"width": 64, "height": 64, **files, **request}
    )


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the default strength": ({}, {"strength": 1.0}),
    "some strength, another seed": ({"strength": 0.7, "seed": 9}, {"strength": 0.7, "seed": 9}),
    "without guidance, with noise in each step": (
        {"strength": 0.75, "num_inference_steps": 4, "guidance_scale": 1, "scheduler.eta": 0.8},
        {"strength": 0.75, "num_inference_steps": 4, "guidance_scale": 1, "eta": 0.8},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["ordinary", "inpainting"])
def test_parity(
    variant: str, case: str, folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    ours, reference = CASES[case]
    found = made(folder(variant), tmp_path / "out", **inputs, **ours)
    assert_same(found, theirs(folder(variant), inputs, **reference))


@pytest.mark.parametrize("variant", ["ordinary, v prediction", "inpainting, four levels"])
def test_other_checkpoints(
    variant: str, folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = made(folder(variant), tmp_path / "out", **inputs, strength=0.7)
    assert_same(found, theirs(folder(variant), inputs, strength=0.7))


@pytest.mark.parametrize("variant", ["ordinary", "inpainting"])
def test_sizes_and_several_pictures(variant: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    inputs = {
        "input_image": photograph(tmp_path / "photo.png", 90, 50),
        "mask_image": stencil(tmp_path / "mask.png", 90, 50),
    }
    size = {"width": 72, "height": 40}
    options = {"memory_profile": "full_gpu", "memory_profile.batch_size": 2, "memory_profile.guidance": "sequential"}
    found = made(folder(variant), tmp_path / "out", **inputs, **size, num_images=2, seed=5, strength=0.7, **options)
    # One at a time: for several, the reference draws the input's latents from the first generator alone.
    expected = [theirs(folder(variant), inputs, **size, seed=seed, strength=0.7) for seed in (5, 6)]
    assert_same(found, np.concatenate(expected))


@pytest.mark.parametrize("variant", ["ordinary", "inpainting"])
def test_what_is_outside_the_mask_is_kept_when_asked(
    variant: str, folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    source, out = folder(variant), tmp_path / "out"
    photo = np.asarray(Image.open(inputs["input_image"]))
    anew = np.asarray(Image.open(inputs["mask_image"])) > 127
    assert 0.2 < anew.mean() < 0.8
    plain = made(source, out, **inputs, num_images=2)
    kept = made(source, out, **inputs, num_images=2, keep_unmasked="true")
    for before, after in zip(plain, kept, strict=True):
        np.testing.assert_array_equal(after[~anew], photo[~anew])
        np.testing.assert_array_equal(after[anew], before[anew])
        assert apart(before[~anew], photo[~anew]) > 2  # a random autoencoder's own


def test_at_full_strength_an_inpainting_model_does_not_see_what_the_mask_covers(
    folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    source, out = folder("inpainting"), tmp_path / "out"
    photo, mask = (Image.open(inputs[name]) for name in ("input_image", "mask_image"))
    covered = tmp_path / "covered.png"
    Image.composite(Image.new("RGB", photo.size, "black"), photo, mask.point(lambda v: 255 * (v > 127))).save(covered)
    found = made(source, out, **inputs)
    np.testing.assert_array_equal(found, made(source, out, **inputs | {"input_image": covered}))
    other = tmp_path / "other.png"
    photo.transpose(Image.Transpose.ROTATE_180).save(other)
    assert apart(found, made(source, out, **inputs | {"input_image": other})) > 2


def test_a_mask_of_any_kind(folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path) -> None:
    grey = Image.open(inputs["mask_image"])
    white = Image.new("L", grey.size, 255)
    kinds = {
        "colour": grey.convert("RGB"),
        "bits": grey.convert("1"),
        "strokes": Image.merge("LA", [white, grey]),
        "palette": grey.convert("P"),
    }
    source, out = folder("ordinary"), tmp_path / "out"
    expected = made(source, out, **inputs, num_inference_steps=1)
    for name, mask in kinds.items():
        path = tmp_path / f"{name}.png"
        mask.save(path)
        found = made(source, out, **inputs | {"mask_image": path}, num_inference_steps=1)
        np.testing.assert_array_equal(found, expected)


def test_the_record_holds_both_inputs(folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path) -> None:
    done = picture_parity.run(folder("ordinary"), tmp_path / "out", **inputs, keep_unmasked="true", strength=0.4)
    assert done.status == 0, done.err
    assert "1 of 3 steps (strength 0.4) are run" in done.err
    record = read_record(done.paths[0])
    assert set(record["inputs"]) == {"input_image", "mask_image"}
    assert record["inputs"]["mask_image"]["file"] == str(inputs["mask_image"])
    assert record["request"]["keep_unmasked"] is True
    assert record["request"]["mask_image"] == str(inputs["mask_image"])


def test_a_mask_of_another_size(folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path) -> None:
    mask, out = stencil(tmp_path / "mask.png", 64, 56), tmp_path / "out"
    done = picture_parity.run(folder("ordinary"), out, **inputs | {"mask_image": mask})
    refused(done, f"mask_image={mask}: is 64 x 56 pixels and the input_image 64 x 64; give them the same size", out)


def test_a_mask_that_is_text(folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "out"
    mask.write_text("white")
    done = picture_parity.run(folder("ordinary"), out, **inputs | {"mask_image": mask})
    refused(done, f"mask_image={mask}: is not a picture that can be read", out)


def test_an_inpainting_checkpoint_needs_a_mask(
    folder: Callable[[str], Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    source, out = folder("inpainting"), tmp_path / "out"
    for request in ({"width": 64, "height": 64}, {"input_image": inputs["input_image"]}):
        done = picture_parity.run(source, out, **request)
        refused(done, "paints into pictures; add input_image=FILE and mask_image=FILE", out)
