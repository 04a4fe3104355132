"""A job's folder on disk: its name, its `job.json`, and the identity by which any command finds it again. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse.config.quoting import FILE_LISTS
from diffuse.config.text_backend import is_own_encoder
from diffuse.errors import MediaError
from diffuse.media.files import TEMPORARY
from diffuse.media.formats import OUTPUT_SUFFIXES, is_lossless, is_still
from diffuse.media.load import content_sha256, image_sha256, read_record
from diffuse.media.video import is_frames_folder
from diffuse.record.values import json_values
from diffuse.schema import COMPONENTS, LATER_COMPONENTS, LATER_FIELDS, SizeFit

JOB_FILE = "job.json"
_VERSION = 1
_NOT_IDENTITY = ("objective", "report", "tracking", "prompt_file")  # the prompts of a file stand under prompt
_KEY_CHARACTERS = 8  # of the key, in the folder's name
_VALUE_CHARACTERS = 24
_NAME_CHARACTERS = 120

# Options of samplers that the first version did not have.
_SOLVER = ("algorithm_type", "lambda_min_clipped", "solver_order", "use_lu_lambdas")
_LATER_OPTIONS = {"dpmpp_2m": _SOLVER, "dpmpp_2m_sde": _SOLVER, "euler": ("interpolation_type",)}
_LATER_TILES = ("tiled_encode", "vae_tile_size", "vae_tile_overlap")  # of a memory profile
_LATER_PROFILE_FIELDS = {
    "streamed": [],
    "resident_blocks": 0,
    "release_to": "host",
    "budget_gib": None,
    "host_gib": None,
    "step_down": True,
    "sharded": [],
    "vae_tile_frames": 11,
    "storage": "full",
}
_FILM_LIMITS = ("max_film_size", "max_frames")  # which refuse films, and decide on pixels only where they shrink them
_TEXT_IDENTITY = ("name", "file", "text_encoder_sha256", "seed")  # who answers, and how soon, is no part of it
_LATER_EVERYWHERE = ("align_your_steps",)


def job_identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a configuration that decides what a job's files hold.

    Where the files go and where runs are recorded is left out.

    Args:
        resolved: the configuration as `resolve_config` returns it.
    """
    later = [name for name, default in LATER_FIELDS.items() if resolved[name] == default]  # earlier sweeps lack them
    parts = {name: part for name, part in resolved.items() if name not in (*_NOT_IDENTITY, *later)}
    values: dict[str, Any] = json_values(parts)
    for name, files in FILE_LISTS.items():
        listed = files.values(values.pop(name, None))
        if listed is not None:  # earlier sweeps lack it
            values[name] = listed
    text_backend = values.pop("text_backend", None)
    if text_backend is not None and not is_own_encoder(text_backend["name"]):  # earlier sweeps lack it
        values["text_backend"] = {name: text_backend[name] for name in _TEXT_IDENTITY}
    values["output"].pop("dir")
    values["output"]["format"] = values["output"]["format"] or "png"  # what stood there before null
    values["model"].pop("download", None)
    for group in (values["model"], values["refiner"]):
        for part in (group, *(group[name] for name in COMPONENTS)):
            part.pop("fetch_variant", None)  # the weights say which one it was
        for name in LATER_COMPONENTS:  # earlier sweeps lack these
            if not any(group[name].values()):
                del group[name]
    profile = values["memory_profile"]
    for name, default in _LATER_PROFILE_FIELDS.items():  # earlier sweeps lack these
        if profile.get(name, default) == default:
            profile.pop(name, None)
    for name in _FILM_LIMITS if values.get("fit") != SizeFit.shrink.value else ():
        profile.pop(name, None)
    tiles = [profile.get(name) for name in _LATER_TILES]
    if tiles == ([False, 64, 16] if profile.get("tiled_decode") else [False, 32, None]):  # as earlier sweeps were made
        for name in _LATER_TILES:
            profile.pop(name, None)
    scheduler = values["scheduler"]
    for name in (
        *_LATER_EVERYWHERE,
        *_LATER_OPTIONS.get(str(scheduler.get("name")), ()),
    ):  # earlier sweeps lack these
        if scheduler.get(name, 0) is None:
            del scheduler[name]
    return values


def json_digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class JobFolders:
    """The folders of a sweep's jobs. Their names hold the values of the axes and the start of the job's key."""

    def __init__(self, sweep: Path, axes: Sequence[str]) -> None:
        self.sweep = sweep
        self.axes = sorted(axes)
        self._labels = {axis: _label(axis, self.axes) for axis in self.axes}
        self._existing: dict[str, Path] = {}
        with suppress(OSError):
            self._existing = {path.name.rpartition("-")[2]: path for path in sweep.iterdir() if path.is_dir()}

    def path(self, overrides: Sequence[str], key: str) -> Path:
        """Returns the folder of the job `key`: the existing one, which a sweep over other axes may have named, or a
        new name."""
        if (existing := self._existing.get(key[:_KEY_CHARACTERS])) is not None:
            return existing
        values = {name: value for name, _, value in (override.partition("=") for override in overrides)}
        for name in FILE_LISTS.keys() & set(self.axes):  # the names of files are shorter without their folders
            values[name] = re.sub(r"[^,\[ ]*/|\.safetensors", "", values.get(name, ""))
        parts = [f"{self._labels[axis]}_{_file_name(values.get(axis, ''))}" for axis in self.axes] or ["job"]
        return self.sweep / f"{'-'.join(parts)[:_NAME_CHARACTERS]}-{key[:_KEY_CHARACTERS]}"


def _label(axis: str, axes: Sequence[str]) -> str:
    """Returns as many parts of an axis' name, from the last one, as tell it from the other axes."""
    parts = axis.split(".")
    for count in range(1, len(parts)):
        alike = [other for other in axes if other.split(".")[-count:] == parts[-count:]]
        if len(alike) == 1 and not parts[-count].isdigit():
            return ".".join(parts[-count:])
    return axis


def _file_name(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", value)[:_VALUE_CHARACTERS].strip("_.")


def read_finished_job(folder: Path, key: str) -> tuple[dict[str, Any], list[Path]] | None:
    """Returns the `job.json` and the media of a finished job; None where a file is missing or has changed.

    Of a picture the pixels count, and of a film the file.
    """
    content = read_json(folder / JOB_FILE)
    if content is None or content.get("key") != key or content.get("status") != "done":
        return None
    try:
        files = [(folder / str(entry["file"]), entry) for entry in content["media"]]
        if not all(path.parent == folder and _is_as_saved(path, entry) for path, entry in files):
            return None
    except (MediaError, KeyError, TypeError):
        return None
    return content, [path for path, _ in files]


def media_entry(path: Path, pixels_sha256: str) -> dict[str, str]:
    """Returns what `job.json` says of a file: its name, and the digest by which it is known later.

    That is `pixels_sha256` of a picture, as the file holds it. A film would have to be decoded for that: it has
    `sha256`, of the file or of the files in its folder, and `pixels_sha256` as they were encoded.
    """
    if not is_still(path):
        return {"file": path.name, "pixels_sha256": pixels_sha256, "sha256": content_sha256(path)}
    return {"file": path.name, "pixels_sha256": pixels_sha256 if is_lossless(path) else image_sha256(path)}


def _is_as_saved(path: Path, entry: Mapping[str, Any]) -> bool:
    """Returns whether a file is the one of its entry. Raises MediaError where it cannot be read."""
    if "sha256" in entry:
        return content_sha256(path) == entry["sha256"]
    return bool(image_sha256(path) == entry["pixels_sha256"])


def sha256_values(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the SHA-256 entries of a record's `weights` or `inputs`, nested as they are there."""
    return {
        name: sha256_values(part) if isinstance(part, dict) else part
        for name, part in value.items()
        if isinstance(part, dict) or name == "sha256"
    }


def next_run_id(folder: Path, key: str, sweep: str) -> str:
    """Returns the id of the job's run in the tracking store.

    It changes each time the job has failed, and stays where the job was only interrupted.
    """
    content = read_json(folder / JOB_FILE) or {}
    last = str(content.get("run_id") or "").rpartition("-")[2]
    is_failed = content.get("status") == "failed" and content.get("key") == key and last.isdecimal()
    return f"{sweep[:12]}-{key}-{(int(last) if is_failed else 0) + 1}"


def clear_job_folder(folder: Path) -> None:
    """Removes what an earlier attempt left: unfinished or damaged files, and pictures that are as it saved them.

    A picture that somebody has changed since stays; the new one then gets a number.
    """
    content = read_json(folder / JOB_FILE) or {}
    entries = {str(entry.get("file")): entry for entry in content.get("media") or () if isinstance(entry, dict)}
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(TEMPORARY) or _is_unchanged(path, entries):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _is_unchanged(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> bool:
    if path.suffix not in OUTPUT_SUFFIXES and not is_frames_folder(path):  # a user's own; so is `.jpeg`
        return False
    if path.name in entries:
        try:
            return _is_as_saved(path, entries[path.name])
        except (MediaError, KeyError):
            return True
    try:
        image = read_record(path).get("image") or {}
        return not (is_still(path) and is_lossless(path)) or image_sha256(path) == image.get("pixels_sha256")
    except MediaError:
        return False


def write_job(
    folder: Path,
    *,
    key: str,
    sweep: str,
    overrides: Sequence[str],
    record: Mapping[str, Any],
    run_id: str | None,
    media: Sequence[Mapping[str, str]] = (),
    metrics: Mapping[str, float] | None = None,
    error: str | None = None,
) -> None:
    """Writes `job.json`: the job is done, or failed with `error`. It is written last, when the media are on disk.

    Args:
        sweep: the identity of the sweep.
        media: the entries of the files, see `media_entry`.

    Raises:
        OSError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "version": _VERSION,
        "key": key,
        "sweep": sweep,
        "overrides": list(overrides),
        "status": "done" if error is None else "failed",
        "error": error,
        "media": [dict(entry) for entry in media],
        "run_id": run_id,
        "metrics": dict(metrics or {}),
        "worker": f"{platform.node()}/{os.getpid()}",
        "record": record,
    }
    replace_json(folder / JOB_FILE, content)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file; None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
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
