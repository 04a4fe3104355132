"""Pictures made from pictures: by the command, and by diffusers' own pipelines from the same files and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import command
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

PROMPT = "a cat, the dog (oil) and 3 rockets"
STEPS = 3

_pipelines: dict[tuple[type[Any], Path], Any] = {}


def photograph(path: Path, width: int = 64, height: int = 64) -> Path:
    """Writes a picture of shapes and a little noise."""
    picture = Image.new("RGB", (width, height), (60, 110, 200))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.6, height * 0.8), fill=(240, 200, 30))
    draw.rectangle((width * 0.5, height * 0.5, width * 0.9, height * 0.95), fill=(150, 20, 60))
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def stencil(path: Path, width: int = 64, height: int = 64) -> Path:
    """Writes a mask: white, to be painted anew, is a region that ends nowhere at a latent's border."""
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).ellipse((width * 0.3, height * 0.17, width * 0.97, height * 0.75), fill=255)
    mask.save(path)
    return path


def run(folder: Path, out: Path, model: str = "sd21", **request: Any) -> command.Done:
    """`diffuse model=MODEL model.source=FOLDER ...`; an input's size is the request's unless that has another."""
    options = {
        "prompt": PROMPT,
        "seed": 0,
        "num_inference_steps": STEPS,
        "model.source": folder,
        "output.dir": out,
        "hardware.threads": 1,
        **request,
    }
    overrides = (f"{name}={value}" for name, value in options.items())
    return command.diffuse(f"model={model}", "hardware=cpu", "tracking=none", *overrides, cwd=out.parent)


def refused(done: command.Done, said: str, out: Path) -> None:
    """The command ended with one line that says so, and left nothing behind."""
    assert done.status == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert not out.exists()


def made(folder: Path, out: Path, **request: Any) -> np.ndarray:
    """The pictures that the command saves, uint8 `[N, H, W, 3]`."""
    return pixels_of(run(folder, out, **request))


def pixels_of(done: command.Done) -> np.ndarray:
    """The pictures that a command saved, uint8 `[N, H, W, 3]`."""
    assert done.status == 0, done.err
    return np.stack([np.asarray(Image.open(path)) for path in done.paths])


def made_by_diffusers(
    kind: type[DiffusionPipeline], folder: Path, *, seed: int = 0, scheduler: Any = None, **request: Any
) -> np.ndarray:
    """What diffusers' pipeline `kind` makes, uint8 `[1, H, W, 3]`; pictures in `request` are files.

    `scheduler` is the class of another than the checkpoint's own.
    """
    if (kind, folder) not in _pipelines:
        loaded = kind.from_pretrained(folder, torch_dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        _pipelines[kind, folder] = loaded
    for name in ("image", "mask_image"):
        if name in request:
            request[name] = Image.open(request[name])
    options = {"prompt": PROMPT, "num_inference_steps": STEPS, "guidance_scale": 7.5, **request}
    generator = torch.Generator("cpu").manual_seed(seed)
    pipeline = _pipelines[kind, folder]
    own = pipeline.scheduler
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(own.config)
    images = pipeline(generator=generator, output_type="pil", **options).images
    pipeline.scheduler = own
    return np.stack([np.asarray(image) for image in images])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """One level in 255 apart at most, and pictures of something."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The mean difference, in levels."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())
