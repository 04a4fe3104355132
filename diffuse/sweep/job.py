"""A job of a sweep on disk: what makes it this one, its folder, and what `job.json` in there says of it. No torch.

A job is known by its configuration, and so is its folder; whoever makes it, on whatever machine, finds what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse.errors import MediaError
from diffuse.media.files import TEMPORARY
from diffuse.media.formats import is_lossless
from diffuse.media.load import image_sha256, read_record
from diffuse.record.values import json_values
from diffuse.schema import ImageFormat

FILE = "job.json"
_VERSION = 1
_NO_PART = ("objective", "report", "tracking", "prompt_file")  # a file's prompts stand under prompt
_KEY_SHOWN = 8  # of its digits in the folder's name
_VALUE_CHARACTERS = 24
_NAME_CHARACTERS = 120


def identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """All of a configuration (see `configuration.resolved`) that decides what the job's files hold: not where they go,
    nor who is told."""
    values: dict[str, Any] = json_values({name: part for name, part in resolved.items() if name not in _NO_PART})
    values["output"].pop("dir")
    values["model"].pop("download", None)  # whether to fetch what is not here
    return values


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Folders:
    """Where the jobs of a sweep are: in folders named by what is their own, so that no two are in one."""

    def __init__(self, sweep: Path, axes: Sequence[str]) -> None:
        self.sweep = sweep
        self.axes = sorted(axes)
        self._there: dict[str, Path] = {}
        with suppress(OSError):
            self._there = {path.name.rpartition("-")[2]: path for path in sweep.iterdir() if path.is_dir()}

    def of(self, overrides: Sequence[str], key: str) -> Path:
        """The folder of the job `key`, which may have been made by a sweep over something else; or a new one's name."""
        if (there := self._there.get(key[:_KEY_SHOWN])) is not None:
            return there
        values = {name: value for name, _, value in (override.partition("=") for override in overrides)}
        said = [f"{axis.rpartition('.')[2]}_{_plain(values.get(axis, ''))}" for axis in self.axes] or ["job"]
        return self.sweep / f"{'-'.join(said)[:_NAME_CHARACTERS]}-{key[:_KEY_SHOWN]}"


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", value)[:_VALUE_CHARACTERS].strip("_.")


def finished(folder: Path, key: str) -> tuple[dict[str, Any], list[Path]] | None:
    """What `job.json` says of a job that is done, and its media, each of which has the pixels that it had."""
    said = read_json(folder / FILE)
    if said is None or said.get("key") != key or said.get("status") != "done":
        return None
    try:
        media_there = [(folder / str(entry["file"]), entry["pixels_sha256"]) for entry in said["media"]]
        for path, sha256 in media_there:
            if path.parent != folder or image_sha256(path) != sha256:
                return None
    except (MediaError, KeyError, TypeError):
        return None
    return said, [path for path, _ in media_there]


def digests(value: Mapping[str, Any]) -> dict[str, Any]:
    """Of a record's `weights` or `inputs`, the SHA-256 of everything that they name."""
    return {
        name: digests(part) if isinstance(part, dict) else part
        for name, part in value.items()
        if isinstance(part, dict) or name == "sha256"
    }


def run_id(folder: Path, key: str, sweep: str) -> str:
    """The name of the job's run in the tracking store: another one for each time that the job has failed, and the same
    one where it was merely interrupted."""
    said = read_json(folder / FILE) or {}
    last = str(said.get("run_id") or "").rpartition("-")[2]
    failed = int(last) if said.get("status") == "failed" and said.get("key") == key and last.isdecimal() else 0
    return f"{sweep[:12]}-{key}-{failed + 1}"


def clear(folder: Path) -> None:
    """Removes what an earlier attempt has left: files half written or damaged, and pictures that are as it saved them.

    One that somebody has changed since stays; the new one then gets a number.
    """
    said = read_json(folder / FILE) or {}
    listed = {str(entry.get("file")): entry for entry in said.get("media") or () if isinstance(entry, dict)}
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(TEMPORARY) or _is_own(path, listed):
                path.unlink(missing_ok=True)


def _is_own(path: Path, listed: Mapping[str, Mapping[str, Any]]) -> bool:
    if path.suffix[1:] not in (kind.value for kind in ImageFormat):
        return False
    try:
        sha256 = image_sha256(path)
    except MediaError:
        return path.name in listed
    if path.name in listed:
        return bool(sha256 == listed[path.name].get("pixels_sha256"))
    try:
        image = read_record(path).get("image") or {}
    except MediaError:
        return False
    return not is_lossless(path) or sha256 == image.get("pixels_sha256")


def write(
    folder: Path,
    *,
    key: str,
    sweep: str,
    overrides: Sequence[str],
    record: Mapping[str, Any],
    run_id: str | None,
    media: Sequence[tuple[Path, str]] = (),
    metrics: Mapping[str, float] | None = None,
    error: str | None = None,
) -> None:
    """Says that the job is done, or failed with `error`. Written last: what it says is on disk already.

    `media` are the files, each with the SHA-256 of its pixels. Raises OSError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "version": _VERSION,
        "key": key,
        "sweep": sweep,
        "overrides": list(overrides),
        "status": "done" if error is None else "failed",
        "error": error,
        "media": [{"file": path.name, "pixels_sha256": sha256} for path, sha256 in media],
        "run_id": run_id,
        "metrics": dict(metrics or {}),
        "worker": f"{platform.node()}/{os.getpid()}",
        "record": record,
    }
    write_json(folder / FILE, said)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces a file as a whole: whatever happens, it is the old one or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
