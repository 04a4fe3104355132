"""Pictures whose models stream have the pixels of those whose models are on the device as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import pytest
from budget_ladder import Ladder
from oracle_sdxl import Variant
from picture_parity import photograph, stencil

import diffuse

STRICT = ["hardware.deterministic=strict"]
UNET = ["memory_profile=unet_gpu", "memory_profile.streamed=[unet]"]
VAE = ["memory_profile=balanced", "memory_profile.streamed=[vae]", "memory_profile.resident_blocks=1"]
PROMPT = "a rocket on a blue background"
SMALL = {"width": 64, "height": 64}
FIELDS: dict[str, Any] = {"hardware": "cpu", "num_inference_steps": 2, "seed": 5}


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
    "tiny": [*map(streaming, (0, 2, 1000)), UNET],
    "sd21": [*map(streaming, (0, 9)), UNET],
    "sdxl": [*map(streaming, (0, 14, 35)), VAE],
    "img2img": [streaming(27), UNET, VAE],
    "inpaint": [streaming(5), VAE],
}


# Tenths of the way from the least that works to what everything takes; tests/benchmarks/budget_ladder.py takes all.
BUDGETS = {"refined": (0, 5), "inpaint": (0, 2)}


@pytest.mark.parametrize("kind", BUDGETS)
def test_a_budget_is_kept_and_changes_no_pixel(kind: str, root: Path) -> None:
    ladder = Ladder(kind, root)
    assert ladder.everything.levers == ("everything stays on the device",)
    for rung in ladder.climb(BUDGETS[kind]):
        rung.check(ladder.expected)
    assert ladder.ways > len(BUDGETS[kind])


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
