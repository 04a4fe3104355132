"""Checks that data from a file is a record: how long, how deep, and with which parts.

The values that a record may ask for are checked in `diffuse.reproduce`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import diffuse
from diffuse.errors import ConfigError
from diffuse.record.record import OPTIONAL_PARTS, PARTS
from diffuse.record.values import short_text
from diffuse.schema import SEED_LIMIT

_MAX_DEPTH = 16  # a record's own values reach 5
_MAX_IMAGES = 10_000
_RESULT_PARTS = ("timings", "batch", "image", "images")  # of a record whose images are made
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_record(record: Any, label: str) -> None:
    """Checks that `record` has all parts of a record, each of its type, no others, and that they agree.

    Args:
        label: how messages call it.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(record, dict) or "config" not in record or "request" not in record:
        raise ConfigError(f"{label}: holds no record of diffuse's; give a picture, record.json or job.json of a run")
    if _is_deeper(record, _MAX_DEPTH):
        raise ConfigError(f"{label}: is nested more than {_MAX_DEPTH} deep, which no record is; refused")
    for name in record:
        if name not in PARTS and name not in OPTIONAL_PARTS and name not in _RESULT_PARTS:
            raise ConfigError(
                f"{label}: a record has no {short_text(name)}; it was made by diffuse "
                f"{short_text(record.get('diffuse'))}, and this is {diffuse.__version__}"
            )
    for name, kind in [*PARTS.items(), *((name, kind) for name, kind in OPTIONAL_PARTS.items() if name in record)]:
        if name not in record or not isinstance(record[name], kind):
            raise ConfigError(f"{label}: its {name} is missing or of another kind; the record was changed")
    if not all(isinstance(override, str) for override in record["overrides"]):
        raise ConfigError(f"{label}: its overrides are not texts; the record was changed")
    config, request = record["config"], record["request"]
    for name, value in request.items():
        if name not in config or config[name] != value:
            raise ConfigError(
                f"{label}: contradicts itself: {short_text(name)} is {short_text(config.get(name))} in its config and "
                f"{short_text(value)} in its request; the record was changed"
            )
    _check_images(record, label)
    _check_batch(record, label)
    _check_step_downs(record, label)


def _check_images(record: Mapping[str, Any], label: str) -> None:
    request = record["request"]
    count, seed = request.get("num_images"), request.get("seed")
    if not _is_int(count) or not 1 <= count <= _MAX_IMAGES or not _is_int(seed):
        raise ConfigError(
            f"{label}: num_images={short_text(count)}, seed={short_text(seed)}: no run was like that; refused"
        )
    listed = record.get("images", [])
    if not isinstance(listed, list) or (listed and [_index(image) for image in listed] != list(range(count))):
        raise ConfigError(f"{label}: does not list the {count} pictures of its run; the record was changed")
    for image in [*listed, *([record["image"]] if "image" in record else [])]:
        index = _index(image)
        digest = image.get("pixels_sha256") if isinstance(image, dict) else None
        if (
            index is None
            or not 0 <= index < count
            or image.get("seed") != seed + index
            or not isinstance(digest, str)
            or not _SHA256.fullmatch(digest)
            or not _SHA256.fullmatch(str(image.get("sound_sha256", digest)))
        ):
            raise ConfigError(f"{label}: {short_text(image)} is not a picture of its run; the record was changed")


def _check_batch(record: Mapping[str, Any], label: str) -> None:
    """Checks `batch`, the seeds that were computed together; the run's own begin at index `first`."""
    if "batch" not in record:
        return
    batch, request = record["batch"], record["request"]
    seeds, first = (batch.get("seeds"), batch.get("first")) if isinstance(batch, dict) else (None, None)
    own = list(range(request["seed"], request["seed"] + request["num_images"]))
    if (
        not isinstance(seeds, list)
        or len(seeds) > _MAX_IMAGES
        or not all(_is_int(seed) and 0 <= seed < SEED_LIMIT for seed in seeds)
        or not _is_int(first)
        or first not in range(len(seeds))
        or seeds[first : first + len(own)] != own
    ):
        raise ConfigError(f"{label}: {short_text(batch)} is not a batch of its run; the record was changed")


def _check_step_downs(record: Mapping[str, Any], label: str) -> None:
    """Checks what was done with less since memory ran out: the lever, its value, and from where on."""
    for event in record.get("step_downs", ()):
        lever, value = (event.get("lever"), event.get("value")) if isinstance(event, dict) else (None, None)
        fits = {
            "tiled_decode": value is True,
            "tiled_encode": value is True,
            "batch_size": _is_int(value) and value >= 1,
            "guidance": value == "sequential",
            "cleanup": value == "phases",
            "resident_blocks": _is_int(value) and value >= 0,
        }
        places = [event.get(name) for name in ("step", "decoded")] if isinstance(event, dict) else [None]
        is_place = all(_is_int(place) and place >= 0 for place in places)
        if not (is_place and isinstance(lever, str) and fits.get(lever) and isinstance(event.get("phase"), str)):
            raise ConfigError(f"{label}: {short_text(event)} is no stepping down; the record was changed")


def _index(image: Any) -> int | None:
    index = image.get("index") if isinstance(image, dict) else None
    return index if _is_int(index) else None


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_deeper(value: Any, limit: int) -> bool:
    """Returns whether lists and mappings are nested more than `limit` deep. Counts by level: recursion has a limit."""
    level = [value]
    for _ in range(limit):
        below = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for items in below if isinstance(items, list) for item in items]
        if not level:
            return False
    return True
