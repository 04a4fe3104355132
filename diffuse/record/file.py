"""A run's record, as the files that hold one have it: a picture, a run's `record.json`, a sweep's `job.json`.

What a file says is data of whoever sent it. Here it is read, and seen to be a record: how long, how deep, of which
parts; what its values may be is a matter of `diffuse.reproduce.replay`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

import diffuse
from diffuse.errors import ConfigError, MediaError
from diffuse.media import files as media
from diffuse.media import images as picture_input
from diffuse.record import record
from diffuse.schema import SEED_LIMIT

MOST_BYTES = 4 << 20  # of a JSON file; a record has some 10 KiB, and 100 bytes more for each picture
_DEEPEST = 16  # a record's own values reach 5
_MOST_IMAGES = 10_000
_BESIDE = ("timings", "batch", "image", "images")  # what a record has once its pictures are made
_JOB_VERSION = 1  # of a job.json
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VIDEOS = {".mp4": (4, b"ftyp"), ".webm": (0, b"\x1a\x45\xdf\xa3"), ".gif": (0, b"GIF8")}  # what stands where in one


@dataclass(frozen=True)
class Recorded:
    """A record, and what is known of its pictures. All by a picture's index in the run, from 0."""

    shown: str  # how messages call it
    record: dict[str, Any]
    digests: Mapping[int, str]  # the SHA-256 of the pixels of each picture that is meant
    pixels: Mapping[int, np.ndarray] = field(default_factory=dict)  # uint8 `[H, W, 3]`, of those that are at hand
    lossless: bool = True  # whether `pixels` are to the bit what was saved


def read(path: Path) -> Recorded:
    """The record in a PNG, JPG or WebP, in the comment of a video, a `record.json` or a `job.json`.

    Raises:
        MediaError: there is no such file, it cannot be read, or holds no record.
        ConfigError: what it holds is no record as this version writes them.
    """
    if path.suffix.lower() == ".json":
        return _from_json(path)
    suffix = path.suffix.lower()
    if suffix in _VIDEOS:
        _check_kind(path, *_VIDEOS[suffix])
    found = media.read_record(path)
    if "left_out" in found:
        raise MediaError(
            f"{path}: has no room for its record, which was {found['left_out']}; give the run's record.json"
        )
    check(found, str(path))
    if "image" not in found:
        raise ConfigError(f"{path}: its record does not say which picture of the run it is; the record was changed")
    index = found["image"]["index"]
    pixels = {} if suffix in _VIDEOS else {index: picture_input.read_picture(str(path), "FILE").pixels}
    return Recorded(str(path), found, {index: found["image"]["pixels_sha256"]}, pixels, suffix == ".png")


def of_run(found: Any, shown: str, pictures: Mapping[int, Path] | None = None) -> Recorded:
    """The record of a whole run, `found`; `pictures` are its PNG files that are at hand.

    Raises:
        ConfigError: it is no record, or of a run that did not end.
    """
    check(found, shown)
    if "images" not in found:
        if "image" in found:
            index = found["image"]["index"]
            return Recorded(shown, found, {index: found["image"]["pixels_sha256"]})
        raise ConfigError(f"{shown}: the run made no picture: there is nothing to make again; start it anew")
    digests = {image["index"]: image["pixels_sha256"] for image in found["images"]}
    pixels = {}
    for index, path in (pictures or {}).items():
        if index in digests and path.suffix.lower() == ".png" and path.is_file():
            pixels[index] = picture_input.read_picture(str(path), "FILE").pixels
    return Recorded(shown, found, digests, pixels)


def _from_json(path: Path) -> Recorded:
    found = _json(path)
    if "record" not in found:
        return of_run(found, str(path))
    if found.get("version") != _JOB_VERSION:
        raise ConfigError(f"{path}: is of version {_short(found.get('version'))}; this diffuse reads {_JOB_VERSION}")
    return of_run(found["record"], str(path), _beside(path, found.get("media")))


def _beside(path: Path, listed: Any) -> dict[int, Path]:
    """The pictures that a job lists, by their index. They lie beside it, and nowhere else."""
    entries = listed if isinstance(listed, list) else []
    found = {}
    for index, entry in enumerate(entries):
        name = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or re.search(r"[/\\:\0]", name) or name in (".", ".."):
            raise ConfigError(f"{path}: lists {_short(name)}, which is not the name of a file beside it; refused")
        found[index] = path.parent / name
    return found


def _check_kind(path: Path, start: int, mark: bytes) -> None:
    """Sees that a video is one: a playlist under that name would have ffmpeg open whatever it lists."""
    if not path.is_file():
        raise MediaError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            content = file.read(start + len(mark))
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror or error}") from None
    if content[start:] != mark:
        raise MediaError(f"{path}: is no {path.suffix[1:].upper()} file")


def _json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MediaError(f"{path}: is no file; give a record.json")
            content = file.read(MOST_BYTES + 1)
    except IsADirectoryError:
        raise MediaError(f"{path}: is a folder; give one file in it") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise MediaError(f"{path}: is longer than {MOST_BYTES >> 20} MiB, which no record is")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise MediaError(f"{path}: is not JSON; give a record.json or a job.json that diffuse wrote") from None
    if not isinstance(found, dict):
        raise MediaError(f"{path}: holds no record; give a record.json or a job.json that diffuse wrote")
    return found


def check(found: Any, shown: str) -> None:
    """Sees that `found` has a record's parts, each of its kind and no other, and that they agree.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(found, dict) or "config" not in found or "request" not in found:
        raise ConfigError(f"{shown}: holds no record of diffuse's; give a picture, record.json or job.json of a run")
    if _deeper(found, _DEEPEST):
        raise ConfigError(f"{shown}: is nested more than {_DEEPEST} deep, which no record is; refused")
    for name in found:
        if name not in record.PARTS and name not in _BESIDE:
            raise ConfigError(
                f"{shown}: a record has no {_short(name)}; it was made by diffuse {_short(found.get('diffuse'))}, and "
                f"this is {diffuse.__version__}"
            )
    for name, kind in record.PARTS.items():
        if name not in found or not isinstance(found[name], kind):
            raise ConfigError(f"{shown}: its {name} is missing or of another kind; the record was changed")
    if not all(isinstance(override, str) for override in found["overrides"]):
        raise ConfigError(f"{shown}: its overrides are not texts; the record was changed")
    config, request = found["config"], found["request"]
    for name, value in request.items():
        if name not in config or config[name] != value:
            raise ConfigError(
                f"{shown}: contradicts itself: {_short(name)} is {_short(config.get(name))} in its config and "
                f"{_short(value)} in its request; the record was changed"
            )
    _check_images(found, shown)
    _check_batch(found, shown)


def _check_images(found: Mapping[str, Any], shown: str) -> None:
    request = found["request"]
    count, seed = request.get("num_images"), request.get("seed")
    if not _whole(count) or not 1 <= count <= _MOST_IMAGES or not _whole(seed):
        raise ConfigError(f"{shown}: num_images={_short(count)}, seed={_short(seed)}: no run was like that; refused")
    listed = found.get("images", [])
    if not isinstance(listed, list) or (listed and [_index(image) for image in listed] != list(range(count))):
        raise ConfigError(f"{shown}: does not list the {count} pictures of its run; the record was changed")
    for image in [*listed, *([found["image"]] if "image" in found else [])]:
        index = _index(image)
        digest = image.get("pixels_sha256") if isinstance(image, dict) else None
        if (
            index is None
            or not 0 <= index < count
            or image.get("seed") != seed + index
            or not isinstance(digest, str)
            or not _SHA256.fullmatch(digest)
        ):
            raise ConfigError(f"{shown}: {_short(image)} is not a picture of its run; the record was changed")


def _check_batch(found: Mapping[str, Any], shown: str) -> None:
    """`batch` says what the run's pictures were computed together with: seeds, from the `first` on its own."""
    if "batch" not in found:
        return
    batch, request = found["batch"], found["request"]
    seeds, first = (batch.get("seeds"), batch.get("first")) if isinstance(batch, dict) else (None, None)
    own = list(range(request["seed"], request["seed"] + request["num_images"]))
    if (
        not isinstance(seeds, list)
        or len(seeds) > _MOST_IMAGES
        or not all(_whole(seed) and 0 <= seed < SEED_LIMIT for seed in seeds)
        or not _whole(first)
        or first not in range(len(seeds))
        or seeds[first : first + len(own)] != own
    ):
        raise ConfigError(f"{shown}: {_short(batch)} is not a batch of its run; the record was changed")


def _index(image: Any) -> int | None:
    index = image.get("index") if isinstance(image, dict) else None
    return index if _whole(index) else None


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and mappings are nested more than `limit` deep. Counts level by level: a recursion would end."""
    level = [value]
    for _ in range(limit):
        below = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for items in below if isinstance(items, list) for item in items]
        if not level:
            return False
    return True


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
