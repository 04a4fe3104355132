"""What the cases' pictures should be: recorded pixels, and by platform the digests that they have there to the bit.

Floating-point sums depend on the processor, on torch and on the number of threads. Where all of these are known here, a
picture must be the recorded one to the bit; elsewhere it must be close to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.media.pixels import levels, psnr
from diffuse.run.generation import Generation

FOLDER = Path(__file__).resolve().parent / "reference"
DIGESTS = "digests.json"

# How near a picture must be to the recorded one on another platform: PSNR in dB. Another processor changes single
# levels, which is above 60; half precision is 29 to 51 from the recorded float32.
_NEAR = {"float32": 50.0, "half": 20.0}


def compare(slug: str, made: Generation) -> tuple[str, str]:
    """What the pictures of a case were compared with, and what is wrong with them, empty where nothing is."""
    paths = files(slug, len(made.frames[:, 0]))
    if not all(path.is_file() for path in paths):
        return "", f"no picture is recorded for it in {FOLDER}"
    expected = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    if expected.shape != made.frames[:, 0].shape:
        return "", f"the recorded pictures are {list(expected.shape)} and these {list(made.frames[:, 0].shape)}"
    digests = [image["pixels_sha256"] for image in made.record["images"]]
    known = recorded().get(key(made.record), {}).get(slug)
    if known == digests:
        return "as recorded on this platform, to the bit", ""
    decibels = psnr(made.frames[:, 0], expected)
    apart = f"up to {levels(made.frames[:, 0], expected)} of 255 levels from what is recorded, PSNR {decibels:.1f} dB"
    if known is not None:
        return "", f"{apart}; on this platform it should be the same to the bit"
    half = any(dtype != "float32" for dtype in made.record["hardware"]["dtypes"].values())
    needed = _NEAR["half" if half else "float32"]
    if decibels < needed:
        return "", f"{apart}, which should be {needed:g} or more"
    return apart if decibels < math.inf else "as recorded, to the bit", ""


def files(slug: str, count: int) -> list[Path]:
    """Where the pictures of a case are recorded."""
    return [FOLDER / (f"{slug}.png" if count == 1 else f"{slug}_{index}.png") for index in range(count)]


@cache
def recorded() -> dict[str, dict[str, list[str]]]:
    """Platform -> case -> the digests of its pictures."""
    found: dict[str, dict[str, list[str]]] = json.loads((FOLDER / DIGESTS).read_text(encoding="utf-8"))
    return found


def key(about: Mapping[str, Any]) -> str:
    """The platform of a run by its record: all that decides how its sums are rounded."""
    hardware = about["hardware"]
    device = hardware["cpu_capability"] if hardware["device"] == "cpu" else f"{hardware['device']} {hardware['name']}"
    parts = [
        f"{platform.system()} {platform.machine()}",
        f"{device} {_processor()}",
        f"torch {about['versions'].get('torch')}",
        f"threads {about['determinism']['threads']}",
        hardware["deterministic"],
        hardware["memory_profile"]["name"],
        *sorted(set(hardware["dtypes"].values())),
    ]
    return ", ".join(parts)


@cache
def _processor() -> str:
    """A digest of what the processor says of itself; virtual machines give different ones the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    told = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part", "CPU implementer")
    kept = [line for line in lines if line.partition(":")[0].strip() in told] or lines
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
