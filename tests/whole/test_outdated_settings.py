"""Checkpoints with the outdated settings of the first releases: pictures as diffusers makes them, and a line on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import oracle
import oracle_sdxl
import picture_parity
import pytest
import torch
from picture_parity import assert_same, made, photograph, run, stencil
from PIL import Image

SMALL = oracle.Variant(
    prediction_type="epsilon", channels=(16, 32), heads=2, cross=(True, True), vae_channels=(8, 8, 16)
)
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DDIM, PNDM = {"_class_name": "DDIMScheduler"}, {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
SIZE = {"width": 64, "height": 64}
NOTE = "this checkpoint's scheduler settings are outdated: "


@pytest.fixture(scope="module")
def made_by_oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.build(tmp_path_factory.mktemp("checkpoint"), SMALL)


@pytest.fixture
def checkpoint(made_by_oracle: Path, tmp_path: Path) -> Any:
    """A checkpoint with this published scheduler, and changes to `unet/config.json`."""

    def publish(scheduler: dict[str, Any], **unet: Any) -> Path:
        folder = tmp_path / "published"
        shutil.copytree(made_by_oracle, folder)
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(TRAINED | scheduler))
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        (folder / "model_index.json").write_text(json.dumps(index))
        config = json.loads((folder / "unet" / "config.json").read_text()) | unet
        (folder / "unet" / "config.json").write_text(json.dumps(config))
        return folder

    return publish


# scheduler=, what is published, overrides, the pipeline of diffusers
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DDIM, clip_sample absent": ("ddim", {**DDIM, "steps_offset": 1, "set_alpha_to_one": False}, {}),
    "DDIM, clip_sample true": ("ddim", {**DDIM, "steps_offset": 1, "clip_sample": True}, {}),
    "DDIM, steps_offset absent": ("ddim", {**DDIM, "clip_sample": False}, {}),
    "DDIM, both absent": ("ddim", DDIM, {}),
    "PNDM, steps_offset absent": ("pndm", PNDM, {}),
    "PNDM, steps_offset 0": ("pndm", {**PNDM, "steps_offset": 0}, {}),
    "PNDM read by DDIM": ("ddim", {**PNDM, "clip_sample": True}, {}),
    "PNDM read by Euler, leading": ("euler", PNDM, {"timestep_spacing": "leading"}),
    "Heun, clipping": ("heun", {"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, {}),
    "DPM++ published leading": ("dpmpp_2m", {**PNDM, "timestep_spacing": "leading"}, {}),
    "UniPC, leading": ("unipc", {**DDIM, "timestep_spacing": "leading", "steps_offset": 0}, {}),
}
THEIRS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def expected(
    folder: Path, sampler: str, changes: dict[str, Any], kind: str = "StableDiffusionPipeline", **request: Any
) -> np.ndarray:
    """What diffusers makes when it loads the checkpoint with this sampler."""
    published = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, THEIRS[sampler]).from_config(published | changes)
    pipeline = getattr(diffusers, kind).from_pretrained(folder, scheduler=scheduler, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(0)
    settings = {"num_inference_steps": 4, "prompt": picture_parity.PROMPT, **SIZE, **request}
    return np.stack([np.asarray(image) for image in pipeline(generator=generator, **settings).images])


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_as_diffusers_makes_them(case: str, checkpoint: Any, tmp_path: Path) -> None:
    sampler, published, changes = CASES[case]
    folder = checkpoint(published)
    asked = {f"scheduler.{name}": value for name, value in changes.items()}
    done = run(folder, tmp_path / "out", "sd15", scheduler=sampler, num_inference_steps=4, **SIZE, **asked)
    assert done.status == 0, done.err
    assert done.err.count(NOTE) == 1
    assert_same(np.asarray(Image.open(done.paths[0]))[None], expected(folder, sampler, changes))


@pytest.mark.parametrize(
    ("sampler", "published", "note"),
    [
        ("pndm", {"_class_name": "PNDMScheduler", "steps_offset": 1}, "skip_prk_steps=false is taken as true"),
        ("pndm", {"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "steps_offset=0 is taken as 1"),
        ("ddim", {**DDIM, "steps_offset": 2, "clip_sample": False}, "steps_offset=2 is taken as 1"),
        ("ddim", {**DDIM, "steps_offset": 1, "clip_sample": True}, None),  # diffusers leaves it for this pipeline
    ],
)
def test_painting_into_a_picture(
    sampler: str, published: dict[str, Any], note: str | None, checkpoint: Any, tmp_path: Path
) -> None:
    folder = checkpoint(published)
    files = {"input_image": photograph(tmp_path / "a.png"), "mask_image": stencil(tmp_path / "b.png")}
    request = {"num_inference_steps": 6, "guidance_scale": 7.5}
    done = run(folder, tmp_path / "out", "sd15", scheduler=sampler, strength=1, **request, **files)
    assert done.status == 0, done.err
    assert (NOTE in done.err) == (note is not None)
    assert (note or "") in done.err
    pictures = {"image": Image.open(files["input_image"]), "mask_image": Image.open(files["mask_image"])}
    kind = "StableDiffusionInpaintPipeline"
    theirs = expected(folder, sampler, {}, kind, strength=1.0, **request, **pictures)
    assert_same(np.asarray(Image.open(done.paths[0]))[None], theirs)


def test_starting_from_a_picture(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint({**DDIM, "set_alpha_to_one": False})
    photo = photograph(tmp_path / "a.png")
    request = {"num_inference_steps": 6, "guidance_scale": 7.5, "strength": 0.7}
    found = made(folder, tmp_path / "out", model="sd15", scheduler="ddim", input_image=photo, **request)
    published = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(
        folder, scheduler=diffusers.DDIMScheduler.from_config(published), torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(0)
    images = pipeline(prompt=picture_parity.PROMPT, image=Image.open(photo), generator=generator, **request).images
    assert_same(found, np.asarray(images[0])[None])


def test_sdxl_is_drawn_as_it_is_published(tmp_path: Path) -> None:
    schedule = {"clip_sample": True, "timestep_spacing": "leading"}
    variant = oracle_sdxl.Variant(scheduler="DDIMScheduler", schedule=schedule)
    folder = oracle_sdxl.build(tmp_path / "checkpoint", variant)
    done = run(folder, tmp_path / "out", "sdxl", scheduler="ddim", guidance_scale=5.0, **SIZE)
    assert done.status == 0, done.err
    assert "outdated" not in done.err
    request = {"prompt": picture_parity.PROMPT, "num_inference_steps": picture_parity.STEPS, "guidance_scale": 5.0}
    assert_same(np.asarray(Image.open(done.paths[0]))[None], oracle_sdxl.picture(folder, **SIZE, **request))


def test_what_the_user_gives_wins(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint(DDIM, sample_size=8, _diffusers_version="0.6.0")
    kept = {"scheduler.clip_sample": "true", "scheduler.steps_offset": 0}
    done = run(folder, tmp_path / "out", "sd15", scheduler="ddim", **SIZE, **kept)
    assert done.status == 0
    assert "outdated" not in done.err
    published = {**TRAINED, "clip_sample": True, "steps_offset": 0}
    theirs = oracle.picture(
        folder,
        scheduler=diffusers.DDIMScheduler.from_config(published),  # given after loading, when nothing is corrected
        prompt=picture_parity.PROMPT,
        num_inference_steps=picture_parity.STEPS,
        **SIZE,
    )
    assert_same(np.asarray(Image.open(done.paths[0]))[None], theirs)


@pytest.mark.parametrize(
    ("version", "size", "side"),
    [
        ("0.4.0", 32, 64),
        ("0.8.1", 16, 64),
        ("0.8.0.dev0", 16, 64),
        ("0.9.0", 8, 8),
        ("0.9.0.dev0", 8, 8),
        ("0.10.2", 8, 8),
        (None, 8, 8),
        ("0.2.0", 72, 72),
    ],
)
def test_the_size_that_an_old_file_says(
    version: str | None, size: int, side: int, checkpoint: Any, tmp_path: Path
) -> None:
    folder = checkpoint({**DDIM, "clip_sample": False, "steps_offset": 1}, sample_size=size)
    path = folder / "unet" / "config.json"
    config = {**json.loads(path.read_text()), "_diffusers_version": version}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert loaded.unet.config.sample_size == side
    done = run(folder, tmp_path / "out", "sd15", scheduler="ddim", num_inference_steps=1)
    assert done.status == 0, done.err
    assert Image.open(done.paths[0]).size == (side * SMALL.pixels,) * 2
    assert ("sample_size" in done.err) == (side != size)
