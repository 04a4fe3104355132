"""What is compared: pictures and videos with the configuration that made them, from files, folders and jobs of a sweep.

What a file says of itself is data from a stranger: it is checked for its shape here, and nothing in it is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuse.errors import MediaError
from diffuse.media.formats import format_of, is_video
from diffuse.media.load import read_record
from diffuse.record.values import flatten

JOB = "job.json"
SWEEP = "sweep.json"
PAGE = "report.html"

_FOREVER = 1e12  # seconds

GROUPS = ("scheduler", "model", "refiner", "memory_profile", "hardware")
# What cannot make one picture different from another, or is told better elsewhere.
_LEFT_OUT = ("output", "tracking", "report", "prompt_file", "num_images")
_PARTS = ("_target_", "name", "request_defaults", "min_vram_gib", "download")


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture or video, and how it came about."""

    path: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    """By dotted key, with nothing left open: the seed is this picture's own, and `scheduler` is the sampler's name."""
    overrides: Sequence[str]
    seconds: float | None = None
    """That this picture took, without loading the weights; of a batch, its share."""
    run_id: str | None = None

    @property
    def is_video(self) -> bool:
        return is_video(self.path)

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, as the record has it; empty where it does not say."""
        image = self.record.get("image")
        return str(image.get("pixels_sha256") or "") if isinstance(image, Mapping) else ""


@dataclass(frozen=True)
class Failure:
    """A job of a sweep that made nothing."""

    overrides: Sequence[str]
    error: str


@dataclass
class Found:
    """What there is to compare."""

    cells: list[Cell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    foreign: int = 0  # media without a record
    title: str = ""
    sweeps: set[str] = field(default_factory=set)  # the identities of those that it is of; "" is that of no sweep

    def add(self, other: Found) -> None:
        """Takes in what was found elsewhere, a file that is there already once."""
        known = {cell.path.resolve() for cell in self.cells}
        self.cells += [cell for cell in other.cells if cell.path.resolve() not in known]
        self.failures += other.failures
        self.foreign += other.foreign
        self.title = ", ".join(filter(None, (self.title, other.title)))
        self.sweeps |= other.sweeps


def cell_of(path: Path, record: Mapping[str, Any], run_id: str | None = None, seconds: float | None = None) -> Cell:
    """The cell of a file whose record is known. Raises MediaError for a record that says too little."""
    config, request, image = (_mapping(record.get(name)) for name in ("config", "request", "image"))
    if not config or not request:
        raise MediaError(f"{path}: its record does not say how it was made; give one that diffuse made")
    known = flatten(config) | {key: value for key, value in request.items() if key in config}
    count = known.get("num_images")
    known["seed"] = image.get("seed", known.get("seed"))
    for group in GROUPS:
        known[group] = known.get(f"{group}.name")
    kept = {key: value for key, value in known.items() if not _is_left_out(key)}
    overrides = record.get("overrides")
    if seconds is None:
        seconds = _seconds(_mapping(record.get("timings")))
    if seconds is not None and isinstance(count, int) and count > 1:
        seconds /= count
    typed = [str(override) for override in overrides] if isinstance(overrides, list) else []
    return Cell(path, record, kept, typed, seconds, run_id)


def of_file(path: Path) -> Found:
    """A picture or a video; where it stands beside its job's `job.json`, what that says of it.

    Raises MediaError where it holds no record.
    """
    job = path.with_name(JOB)
    if job.is_file():
        found = of_job(job)
        beside = [cell for cell in found.cells if cell.path.name == path.name]
        if beside:
            return Found(beside, title=path.name, sweeps=found.sweeps)
    return Found([cell_of(path, read_record(path))], title=path.name, sweeps={""})


def of_folder(folder: Path) -> Found:
    """All media with a record below `folder`, and the jobs that failed. Those without a record are counted."""
    title, identity = _sweep(folder)
    found = Found(title=title)
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(place)
        jobs = of_job(here / JOB) if JOB in names else Found()
        known = {cell.path.name for cell in jobs.cells}
        found.cells += jobs.cells
        found.failures += jobs.failures
        found.sweeps |= jobs.sweeps
        for name in sorted(names):
            path = here / name
            if format_of(path) is None or name in known or name.startswith("."):
                continue
            try:
                found.cells.append(cell_of(path, read_record(path)))
                found.sweeps.add("")
            except MediaError:
                found.foreign += PAGE not in names  # beside a report lie its own sheets
    if identity:  # the folder is its own, whichever sweep made what it found in there
        found.sweeps = {identity}
    return found


def of_job(file: Path) -> Found:
    """What a `job.json` tells of: its media, or why there are none. One that cannot be read tells of nothing."""
    try:
        job = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Found()
    job = _mapping(job)
    overrides = [str(override) for override in _sequence(job.get("overrides"))]
    if job.get("status") != "done":
        return Found(failures=[Failure(overrides, str(job.get("error") or "it did not end"))])
    record = _mapping(job.get("record"))
    images = _sequence(record.get("images"))
    shared = {key: value for key, value in record.items() if key != "images"}
    run_id = str(job["run_id"]) if job.get("run_id") else None
    found = Found(sweeps={str(job.get("sweep") or "")})
    for index, entry in enumerate(_sequence(job.get("media"))):
        name = str(_mapping(entry).get("file"))
        path = file.with_name(Path(name).name)
        if format_of(path) is None:
            continue
        if not path.is_file():
            found.failures.append(Failure(overrides, f"{path.name} is gone"))
            continue
        image = _mapping(images[index]) if index < len(images) else {}
        image = {"pixels_sha256": _mapping(entry).get("pixels_sha256"), **image}
        try:
            found.cells.append(cell_of(path, {**shared, "image": image}, run_id))
        except MediaError:
            found.foreign += 1
    return found


def _sweep(folder: Path) -> tuple[str, str]:
    """What a sweep calls itself and its identity; of another folder its name, and nothing."""
    try:
        sweep = _mapping(json.loads((folder / SWEEP).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        sweep = {}
    return str(sweep.get("name") or folder.resolve().name), str(sweep.get("identity") or "")


def _seconds(timings: Mapping[str, Any]) -> float | None:
    """What the pictures took, without loading the weights; None where the record does not say."""
    total, load = (timings.get(name, 0.0) for name in ("total_s", "load_s"))
    if not all(isinstance(value, float | int) and 0 <= value < _FOREVER for value in (total, load)):
        return None
    return max(float(total) - float(load), 0.0) or None


def _is_left_out(key: str) -> bool:
    group, _, part = key.partition(".")
    return group in _LEFT_OUT or (group in GROUPS and part.partition(".")[0] in _PARTS)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The fields and groups that a command line names."""
    return {override.partition("=")[0].lstrip("+~").strip() for override in overrides}
