"""Pictures whose models stream have the pixels of those whose models are on the device as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import pytest
from oracle_sdxl import Variant
from picture_parity import photograph, stencil

import diffuse

STRICT = ["hardware.deterministic=strict"]
RESIDENT = (0, 1, 2, 5, 9, 14, 20, 27, 35, 1000)  # blocks; none of the models has as many as the last
WAYS = [["memory_profile=streaming", f"memory_profile.resident_blocks={count}"] for count in RESIDENT]
WAYS += [["memory_profile=unet_gpu", "memory_profile.streamed=[unet]"]]
WAYS += [["memory_profile=balanced", "memory_profile.streamed=[vae]", "memory_profile.resident_blocks=1"]]
PROMPT = "a rocket on a blue background"
FIELDS: dict[str, Any] = {"hardware": "cpu", "num_inference_steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def frames(kind: str, root: Path, overrides: list[str]) -> np.ndarray:
    fields = {**FIELDS, "overrides": [*STRICT, *overrides]}
    if kind == "tiny":
        made = diffuse.txt2img(PROMPT, **fields)
    elif kind == "sd21":
        made = diffuse.txt2img(PROMPT, model=root / "sd21", width=64, height=64, **fields)
    elif kind == "sdxl":
        made = diffuse.txt2img(PROMPT, model=root / "sdxl", width=64, height=64, **fields)
    elif kind == "img2img":
        made = diffuse.img2img(PROMPT, root / "photo.png", model=root / "sdxl", strength=0.9, **fields)
    else:
        made = diffuse.inpaint(PROMPT, root / "photo.png", root / "mask.png", **fields)
    return np.asarray(made.frames)


@pytest.mark.parametrize("kind", ["tiny", "sd21", "sdxl", "img2img", "inpaint"])
def test_pixels_do_not_depend_on_what_streams(kind: str, root: Path) -> None:
    for name, build, variant in (("sd21", oracle.build, oracle.Variant), ("sdxl", oracle_sdxl.build, Variant)):
        if not (root / name).exists():
            build(root / name, variant())
    photograph(root / "photo.png")
    stencil(root / "mask.png")
    expected = frames(kind, root, ["memory_profile=full_gpu"])
    for way in WAYS:
        assert np.array_equal(frames(kind, root, way), expected), way
