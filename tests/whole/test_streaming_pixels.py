"""Pictures whose models stream have the pixels of those whose models are on the device as a whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import pytest
from device_bytes import DeviceBytes
from oracle_sdxl import Variant
from picture_parity import photograph, stencil

import diffuse
from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.device.gpus import GIB
from diffuse.errors import ConfigError
from diffuse.plan.choose_levers import Choice
from diffuse.run.open import close_pipeline
from diffuse.run.prepare import prepare
from diffuse.run.run import compute

STRICT = ["hardware.deterministic=strict"]
UNET = ["memory_profile=unet_gpu", "memory_profile.streamed=[unet]"]
VAE = ["memory_profile=balanced", "memory_profile.streamed=[vae]", "memory_profile.resident_blocks=1"]
IN_MAIN_MEMORY = 16 << 10  # bytes of noise and latents, which are not on the device
CPU = ["hardware=cpu", "hardware.threads=1", "tracking=none", "num_inference_steps=1", "seed=5", "prompt=a rocket"]
Known = dict[tuple[str, ...], tuple[int, np.ndarray]]  # by levers: bytes of the device, and frames
PROMPT = "a rocket on a blue background"
SMALL = {"width": 64, "height": 64}
FIELDS: dict[str, Any] = {"hardware": "cpu", "num_inference_steps": 2, "seed": 5}


def measure(
    overrides: list[str], known: dict[tuple[str, ...], tuple[int, np.ndarray]]
) -> tuple[Choice, int, np.ndarray]:
    """Returns what a budget chooses, the bytes of the device, and the frames of a second picture under it.

    For that one the process holds what the first left. `known` has what other budgets with the same levers gave.
    """
    cfg = compose_config([*CPU, *STRICT, *overrides])
    prepared = prepare(cfg, draft_requests(cfg)[0])
    choice = prepared.opened.choice
    assert choice is not None
    if choice.levers not in known:
        compute([prepared])  # reads the weights
        with DeviceBytes(prepared.opened.pipeline.memory) as mode:
            made = compute([prepared])[0].frames
        known[choice.levers] = mode.device_peak, made
    close_pipeline(prepared.opened.pipeline)
    return choice, *known[choice.levers]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def frames(kind: str, root: Path, overrides: list[str]) -> np.ndarray:
    fields = {**FIELDS, "overrides": [*STRICT, *overrides]}
    if kind == "tiny":
        made = diffuse.txt2img(PROMPT, **fields)
    elif kind == "sd21":
        made = diffuse.txt2img(PROMPT, model=root / "sd21", **SMALL, **fields)
    elif kind == "sdxl":
        made = diffuse.txt2img(PROMPT, model=root / "sdxl", **SMALL, **fields)
    elif kind == "img2img":
        made = diffuse.img2img(PROMPT, root / "photo.png", model=root / "sdxl", strength=0.9, **fields)
    else:
        made = diffuse.inpaint(PROMPT, root / "photo.png", root / "mask.png", **fields)
    return np.asarray(made.frames)


def streaming(resident: int) -> list[str]:
    return ["memory_profile=streaming", f"memory_profile.resident_blocks={resident}"]


# Each number of blocks belongs to one of the families that can tell it from others; none has as many as 1000. The
# models of SDXL have the most blocks, and an image to start from is what a VAE encodes.
WAYS = {
    "tiny": [*map(streaming, (0, 1, 2, 14, 1000)), UNET, VAE],
    "sd21": [*map(streaming, (0, 9)), UNET],
    "sdxl": [*map(streaming, (0, 5, 20, 35)), VAE],
    "img2img": [streaming(27), UNET, VAE],
    "inpaint": [streaming(5), VAE],
}


@pytest.mark.parametrize("kind", ["tiny", "sdxl"])
def test_a_budget_is_kept_and_changes_no_pixel(kind: str, root: Path) -> None:
    """Ten steps from the least that works to what everything takes at once, of which the larger model takes two."""
    if kind == "sdxl" and not (root / "sdxl").exists():
        oracle_sdxl.build(root / "sdxl", Variant())
    model = [] if kind == "tiny" else ["model=sdxl", f"model.source={root / 'sdxl'}", "width=64", "height=64"]
    known: Known = {}
    everything, _, expected = measure([*model, "memory_profile.budget_gib=8"], known)
    assert everything.levers == ("everything stays on the device",)
    with pytest.raises(ConfigError, match="least that works is") as refusal:
        measure([*model, "memory_profile.budget_gib=1e-6"], known)
    floor = float(re.findall(r"works is ([0-9.]+) GiB", str(refusal.value))[0])
    full = everything.device_bytes / GIB
    for step in range(0, 10, 1 if kind == "tiny" else 5):
        budget = floor + (full - floor) * step / 10
        choice, peak, frames = measure([*model, f"memory_profile.budget_gib={budget}"], known)
        assert choice.device_bytes <= budget * GIB, choice.line()
        assert peak <= budget * GIB + IN_MAIN_MEMORY, choice.line()
        assert peak > 0.85 * choice.device_bytes, choice.line()
        assert np.array_equal(frames, expected), choice.line()
    assert len(known) >= 3


@pytest.mark.parametrize("kind", WAYS)
def test_pixels_do_not_depend_on_what_streams(kind: str, root: Path) -> None:
    for name, build, variant in (("sd21", oracle.build, oracle.Variant), ("sdxl", oracle_sdxl.build, Variant)):
        if {"img2img": "sdxl"}.get(kind, kind) == name and not (root / name).exists():
            build(root / name, variant())
    photograph(root / "photo.png")
    stencil(root / "mask.png")
    expected = frames(kind, root, ["memory_profile=full_gpu"])
    for way in WAYS[kind]:
        assert np.array_equal(frames(kind, root, way), expected), way
