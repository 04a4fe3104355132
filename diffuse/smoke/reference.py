"""Reference pictures of the cases: recorded pixels, and for known platforms the digests of theirs.

A film is recorded as the strip of its frames, and the digest of its sound stands beside that of its frames.

Floating-point sums depend on the processor, on torch and on the number of threads. Where all of these are recorded, a
picture must be the recorded one to the bit; elsewhere it must be close to it. `tests/support/record_smoke.py` records.
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

from diffuse.media.pixels import frame_strip, largest_difference, psnr
from diffuse.run.generation import Generation

FOLDER = Path(__file__).resolve().parent / "reference"
DIGESTS = "digests.json"

# How close a picture must be to the recorded one on another platform: PSNR in dB. Another processor changes single
# levels, which is above 60; half precision is 29 to 51 from the recorded float32.
_NEAR = {"float32": 50.0, "half": 20.0}


def compare_with_reference(slug: str, generation: Generation) -> tuple[str, str]:
    """Returns how a case's pictures agree with the recorded ones, or what is wrong; the other of the two is empty."""
    images = np.stack([frame_strip(frames) for frames in generation.frames])
    paths = reference_files(slug, len(images))
    if not all(path.is_file() for path in paths):
        return "", f"no picture is recorded for it in {FOLDER}; tests/support/record_smoke.py records it"
    expected = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    if expected.shape != images.shape:
        return "", f"the recorded pictures are {list(expected.shape)} and these {list(images.shape)}"
    digests = recorded_digests(generation.record)
    known = read_digests().get(platform_key(generation.record), {}).get(slug)
    if known == digests:
        return "as recorded on this platform, to the bit", ""
    decibels = psnr(images, expected)
    difference = (
        f"up to {largest_difference(images, expected)} of 255 levels from what is recorded, PSNR {decibels:.1f} dB"
    )
    if known is not None:
        return "", f"{difference}; on this platform it should be the same to the bit"
    half = any(dtype != "float32" for dtype in generation.record["hardware"]["dtypes"].values())
    needed = _NEAR["half" if half else "float32"]
    if decibels < needed:
        return "", f"{difference}, which should be {needed:g} or more"
    return difference if decibels < math.inf else "as recorded, to the bit", ""


def recorded_digests(record: Mapping[str, Any]) -> list[str]:
    """Returns the digest of each result of a run: that of its pixels, with that of its sound behind a `+`."""
    return ["+".join(filter(None, (each["pixels_sha256"], each.get("sound_sha256")))) for each in record["images"]]


def reference_files(slug: str, count: int) -> list[Path]:
    """Returns the paths of a case's recorded pictures, of which there are `count`."""
    return [FOLDER / (f"{slug}.png" if count == 1 else f"{slug}_{index}.png") for index in range(count)]


@cache
def read_digests() -> dict[str, dict[str, list[str]]]:
    """Reads the digests of pictures, by platform and by the slug of the case."""
    digests: dict[str, dict[str, list[str]]] = json.loads((FOLDER / DIGESTS).read_text(encoding="utf-8"))
    return digests


def platform_key(record: Mapping[str, Any]) -> str:
    """Returns the platform of a run from its record: everything that decides how its sums are rounded."""
    hardware = record["hardware"]
    device = hardware["cpu_capability"] if hardware["device"] == "cpu" else f"{hardware['device']} {hardware['name']}"
    parts = [
        f"{platform.system()} {platform.machine()}",
        f"{device} {_processor()}",
        f"torch {record['versions'].get('torch')}",
        f"threads {record['determinism']['threads']}",
        hardware["deterministic"],
        hardware["memory_profile"]["name"],
        *sorted(set(hardware["dtypes"].values())),
    ]
    return ", ".join(parts)


@cache
def _processor() -> str:
    """Returns a digest of the processor's features; virtual machines give different ones the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    fields = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part", "CPU implementer")
    kept = [line for line in lines if line.partition(":")[0].strip() in fields] or lines
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
