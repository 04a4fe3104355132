"""What the cases' pictures should be: recorded pixels, and by platform the digests that they have there to the bit.

Floating-point sums depend on the processor, on torch and on the number of threads. Where all of these are known here, a
picture must be the recorded one to the bit; elsewhere it must be close to it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse import differences
from diffuse.generation import Generation

FOLDER = Path(__file__).resolve().parent / "reference"
DIGESTS = "digests.json"

# How far a picture may be from the recorded one on another platform: the mean difference in levels, of 255.
_MEAN = {"float32": 0.5, "half": 16.0}


def compare(slug: str, made: Generation) -> tuple[str, str]:
    """What the pictures of a case were compared with, and what is wrong with them, empty where nothing is."""
    paths = files(slug, len(made.pixels))
    if not all(path.is_file() for path in paths):
        return "", f"no picture is recorded for it in {FOLDER}"
    expected = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    if expected.shape != made.pixels.shape:
        return "", f"the recorded pictures are {list(expected.shape)} and these {list(made.pixels.shape)}"
    digests = [image["pixels_sha256"] for image in made.record["images"]]
    known = recorded().get(key(made.record), {}).get(slug)
    far = differences.levels(made.pixels, expected)
    if known == digests:
        return "as recorded on this platform, to the bit", ""
    apart = f"up to {far} of 255 levels from the recorded picture"
    if known is not None:
        return "", f"not what was recorded on this platform: {apart}"
    half = any(dtype != "float32" for dtype in made.record["hardware"]["dtypes"].values())
    mean = float(np.abs(made.pixels.astype(np.int16) - expected).mean())
    allowed = _MEAN["half" if half else "float32"]
    if mean > allowed:
        return "", f"{apart} and {mean:.2f} in the mean, where {allowed:g} is allowed on another platform"
    return apart if far else "as recorded, to the bit", ""


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
