"""Image-to-image from the command line, against the pictures that diffusers makes from the same input and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import picture_parity
import pytest
import torch
from command import smoke
from diffusers import StableDiffusionImg2ImgPipeline
from oracle import Variant
from picture_parity import apart, assert_same, made, photograph, refused
from PIL import Image, ImageOps

from diffuse.media.load import read_record

SMALL = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
VARIANTS = {
    "v prediction": Variant(**SMALL),
    "epsilon": Variant(**SMALL, prediction_type="epsilon", linear_projection=False, tokenizer="fast"),
    "zero terminal SNR": Variant(
        **SMALL, scheduler={"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    ),
    "four levels": Variant(),
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
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photograph(tmp_path_factory.mktemp("inputs") / "a photo, [1] = é.png")


def theirs(folder: Path, image: Path, **request: Any) -> np.ndarray:
    return picture_parity.made_by_diffusers(StableDiffusionImg2ImgPipeline, folder, image=image, **request)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "the default strength": ("v prediction", {}, {"strength": 0.8}),
    "little": ("v prediction", {"strength": 0.34}, {"strength": 0.34}),
    "another seed, without guidance": (
        "epsilon",
        {"strength": 0.7, "seed": 77, "guidance_scale": 1},
        {"strength": 0.7, "seed": 77, "guidance_scale": 1},
    ),
    "with noise in each step": (
        "epsilon",
        {"strength": 0.75, "num_inference_steps": 4, "scheduler.eta": 0.8},
        {"strength": 0.75, "num_inference_steps": 4, "eta": 0.8},
    ),
    "without signal at the last timestep": ("zero terminal SNR", {"strength": 0.67}, {"strength": 0.67}),
    "all of the strength, without signal": ("zero terminal SNR", {"strength": 1}, {"strength": 1.0}),
    "four levels": (
        "four levels",
        {"strength": 0.5, "num_inference_steps": 2},
        {"strength": 0.5, "num_inference_steps": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_parity(name: str, folder: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    variant, ours, reference = CASES[name]
    found = made(folder(variant), tmp_path / "out", input_image=photo, **ours)
    assert_same(found, theirs(folder(variant), photo, **reference))


@pytest.mark.parametrize("size", [(72, 104), (77, 51)])
def test_the_size_is_the_inputs_rounded_down(
    size: tuple[int, int], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    photo = photograph(tmp_path / "photo.png", *size)
    found = made(folder("epsilon"), tmp_path / "out", input_image=photo, strength=0.7)
    width, height = (side // 8 * 8 for side in size)
    assert found.shape == (1, height, width, 3)
    scaled = tmp_path / "scaled.png"
    Image.open(photo).resize((width, height), Image.Resampling.LANCZOS).save(scaled)
    assert_same(found, theirs(folder("epsilon"), scaled, strength=0.7))


def test_another_size_and_several_pictures(folder: Callable[[str], Path], tmp_path: Path) -> None:
    photo = photograph(tmp_path / "photo.png", 96, 48)
    request = {"input_image": photo, "strength": 0.7, "width": 64, "height": 64, "num_images": 2, "seed": 3}
    cropped = tmp_path / "cropped.png"
    ImageOps.fit(Image.open(photo), (64, 64), Image.Resampling.LANCZOS).save(cropped)
    expected = [theirs(folder("epsilon"), cropped, strength=0.7, seed=seed) for seed in (3, 4)]
    for batch in (1, 2):
        options = {"resize": "crop", "memory_profile": "full_gpu", "memory_profile.batch_size": batch}
        assert_same(made(folder("epsilon"), tmp_path / "out", **request, **options), np.concatenate(expected))


def test_all_of_the_strength_starts_from_noise_alone(
    folder: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    """The reference leaves in the start what the first timestep has of signal: a seventh here."""
    source = folder("epsilon")
    found = made(source, tmp_path / "out", input_image=photo, strength=1)
    other = photograph(tmp_path / "other.png")
    Image.open(other).transpose(Image.Transpose.ROTATE_180).save(other)
    np.testing.assert_array_equal(found, made(source, tmp_path / "out", input_image=other, strength=1))
    generator = torch.Generator("cpu").manual_seed(0)
    torch.randn(1, 4, 16, 16, generator=generator)  # of the input's latents, which are drawn first
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    request = {"prompt": picture_parity.PROMPT, "num_inference_steps": 3, "width": 64, "height": 64}
    assert_same(found, oracle.picture(source, latents=noise, guidance_scale=7.5, **request))


def test_the_strength_says_how_far_the_picture_may_change(
    folder: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    request = {"input_image": photo, "num_inference_steps": 8, "guidance_scale": 1}
    # A random autoencoder gives nothing back as it was, so what it makes of the least noise is the measure.
    least, middle, most = (
        made(folder("epsilon"), tmp_path / "out", strength=strength, **request) for strength in (0.125, 0.5, 0.9)
    )
    assert 2 < apart(middle, least) < apart(most, least) - 2


def test_what_the_user_is_told_and_what_is_recorded(folder: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    done = picture_parity.run(folder("epsilon"), tmp_path / "out", input_image=photo, strength=0.67)
    assert f"{photo}: 2 of 3 steps (strength 0.67) are run, at 64 x 64" in done.err
    record = read_record(done.paths[0])
    assert record["inputs"] == {
        "input_image": {
            "file": str(photo),
            "sha256": hashlib.sha256(photo.read_bytes()).hexdigest(),
            "width": 64,
            "height": 64,
        }
    }
    assert record["request"]["strength"] == record["config"]["strength"] == 0.67
    assert record["request"]["resize"] == "stretch"
    assert record["config"]["input_image"] == str(photo)
    assert "Denoising strength: 0.67" in Image.open(done.paths[0]).info["parameters"]


def test_the_file_of_a_previous_run(folder: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    source, out = folder("epsilon"), tmp_path / "out"
    first = picture_parity.run(source, out, width=64, height=64).paths[0]
    second = picture_parity.run(source, out, input_image=first, strength=0.5).paths[0]
    assert_same(np.asarray(Image.open(second))[None], theirs(source, tmp_path / first, strength=0.5))
    record = read_record(second)
    assert record["inputs"]["input_image"]["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_an_animation_and_one_pixel(folder: Callable[[str], Path], tmp_path: Path) -> None:
    animation = tmp_path / "x.gif"
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(animation, save_all=True, append_images=frames[1:])
    done = picture_parity.run(folder("epsilon"), tmp_path / "out", input_image=animation)
    assert f"input_image={animation}: holds 2 frames; the first is taken" in done.err
    pixel = tmp_path / "pixel.png"
    Image.new("RGB", (1, 1), "green").save(pixel)
    assert made(folder("epsilon"), tmp_path / "out", input_image=pixel).shape == (1, 8, 8, 3)
    assert made(folder("epsilon"), tmp_path / "out", input_image=pixel, width=64, height=48).shape == (1, 48, 64, 3)


def test_every_profile_makes_the_same_picture(folder: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    profiles = ("balanced", "cpu_only")
    pictures = [
        made(folder("epsilon"), tmp_path / "out", input_image=photo, memory_profile=profile) for profile in profiles
    ]
    for other in pictures[1:]:
        assert np.abs(pictures[0].astype(int) - other.astype(int)).max() <= 1


REFUSED = {
    "too strong": ({"strength": 1.2}, "strength=1.2: should be a number above 0, up to 1"),
    "no strength": ({"strength": 0}, "strength=0.0: should be a number above 0"),
    "no number": ({"strength": "nan"}, "strength=nan: should be a number above 0"),
    "text": ({"strength": "much"}, "strength=much: 'much' is not a number"),
    "too few steps": ({"strength": 0.2}, "leaves none of num_inference_steps=3 to run; raise it, or take at least 5"),
    "a way to resize that is none": ({"resize": "squash"}, "'squash' is none of stretch, crop, pad"),
    "no mask to keep by": ({"keep_unmasked": "true"}, "keep_unmasked=true: keeps what is outside a mask; add mask_im"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, folder: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    request, said = REFUSED[name]
    out = tmp_path / "out"
    refused(picture_parity.run(folder("epsilon"), out, input_image=photo, **request), said, out)


@pytest.mark.parametrize("field", ["strength=0.5", "mask_image=mask.png", "resize=crop", "keep_unmasked=true"])
def test_what_goes_with_an_input_needs_one(field: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    name, value = field.split("=")
    out = tmp_path / "out"
    done = picture_parity.run(folder("epsilon"), out, **{name: value})
    to_start_from = "what" if name == "resize" else "a picture"  # a clip or a last picture has a size, too
    refused(done, f"{name}: is of {to_start_from} to start from; add input_image=FILE", out)


def test_a_file_that_is_text(folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("a cat")
    out = tmp_path / "out"
    done = picture_parity.run(folder("epsilon"), out, input_image=tmp_path / "x.png")
    refused(done, f"input_image={tmp_path / 'x.png'}: is not a picture that can be read", out)


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ((slice(0), 255), True),  # nothing
        ((slice(16, 32), 100), True),  # less than half white
        ((slice(17, 18), 255), True),  # a line that no latent begins with
        ((slice(16, 32), 255), False),
        ((slice(16, 32), 1), False),  # a mask of 0 and 1
    ],
)
def test_a_mask_that_selects_nothing_says_so(selected: tuple[slice, int], said: bool, tmp_path: Path) -> None:
    values = np.zeros((64, 64), np.uint8)
    values[selected[0]] = selected[1]
    Image.fromarray(values).save(tmp_path / "mask.png")
    photograph(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as picture:
        picture.resize((64, 64)).save(tmp_path / "photo.png")
    done = smoke("input_image=photo.png", "mask_image=mask.png", cwd=tmp_path)
    assert (
        "warning: mask_image: selects nothing at 64 x 64; make white what is to be painted anew" in done.err
    ) == said
    assert ("holds 0 and 1 only; 1 is taken for white" in done.err) == (selected[1] == 1)
