"""Cells of a comparison: images and videos with the configuration that made them, from files, folders and sweep jobs.

A record in a file is data from a stranger: its shape is checked here, and nothing in it is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from diffuse.errors import MediaError
from diffuse.media.formats import VideoFormat, format_of, is_video
from diffuse.media.load import read_record
from diffuse.media.video import FIRST_FRAME, is_frames_folder
from diffuse.record.values import flatten

JOB = "job.json"
SWEEP = "sweep.json"
PAGE = "report.html"

_FOREVER = 1e12  # seconds

GROUPS = ("scheduler", "model", "refiner", "memory_profile", "hardware", "text_backend")
# Fields that cannot make one image different from another, or that the report shows elsewhere.
_LEFT_OUT = ("output", "tracking", "report", "prompt_file", "num_images")
_PARTS = ("_target_", "name", "request_defaults", "min_vram_gib", "download", "fetch_variant")


@dataclass(frozen=True, eq=False)
class Cell:
    """One image or video, and how it was made."""

    path: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    """Values by dotted key; the seed is this image's own, and `scheduler` is the sampler's name."""
    overrides: Sequence[str]
    seconds: float | None = None
    """Seconds for this result without loading the weights; its share of a batch."""
    run_id: str | None = None

    @property
    def weights_errors(self) -> dict[str, float]:
        """The relative error of each component's weights that are stored in fewer bits, by its name."""
        parts = _mapping(self.record.get("quantized")).items()
        errors = {str(name): _mapping(part).get("relative_error") for name, part in parts}
        return {name: float(error) for name, error in errors.items() if isinstance(error, float | int)}

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
    """A job of a sweep that has no result."""

    overrides: Sequence[str]
    error: str


@dataclass
class CellSet:
    """Everything there is to compare: cells, and the jobs that failed."""

    cells: list[Cell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    foreign: int = 0  # media without a record, or with sound alone
    title: str = ""
    sweeps: set[str] = field(default_factory=set)  # identities of the sweeps that the cells are from; "" for no sweep

    def add(self, other: CellSet) -> None:
        """Adds the cells and failures of another set; a file that is there already counts once."""
        known = {cell.path.resolve() for cell in self.cells}
        self.cells += [cell for cell in other.cells if cell.path.resolve() not in known]
        self.failures += other.failures
        self.foreign += other.foreign
        self.title = ", ".join(filter(None, (self.title, other.title)))
        self.sweeps |= other.sweeps


def build_cell(path: Path, record: Mapping[str, Any], run_id: str | None = None, seconds: float | None = None) -> Cell:
    """Builds the cell of a file from its record.

    Raises:
        MediaError: the record does not say how the file was made.
    """
    config, request, image = (_mapping(record.get(name)) for name in ("config", "request", "image"))
    if not config or not request:
        raise MediaError(f"{path}: its record does not say how it was made; give one that diffuse made")
    values = flatten(config) | {key: value for key, value in request.items() if key in config}
    count = values.get("num_images")
    values["seed"] = image.get("seed", values.get("seed"))
    for group in GROUPS:
        values[group] = values.get(f"{group}.name")
    values = {key: value for key, value in values.items() if not _is_left_out(key)}
    for name in ("lora", "embedding"):
        values |= _file_fields(name, values.pop(name, None))
    overrides = [str(override) for override in _sequence(record.get("overrides"))]
    if seconds is None:
        seconds = _seconds(_mapping(record.get("timings")))
    if seconds is not None and isinstance(count, int) and count > 1:
        seconds /= count
    return Cell(path, record, values, overrides, seconds, run_id)


def cells_in_file(path: Path) -> CellSet:
    """Returns the cell of one file or folder of frames; a `job.json` beside it says more of it than the record inside.

    Raises:
        MediaError: there is no record of it, or nothing to see.
    """
    if path.name == FIRST_FRAME and is_frames_folder(path.parent):
        path = path.parent  # which is the film
    if not _is_shown(path):
        raise MediaError(f"{path}: holds sound alone, which cannot be compared by eye; give the film that it is of")
    job = path.with_name(JOB)
    if job.is_file():
        of_job = cells_in_job(job)
        cells = [cell for cell in of_job.cells if cell.path.name == path.name]
        if cells:
            return CellSet(cells, title=path.name, sweeps=of_job.sweeps)
    return CellSet([build_cell(path, read_record(path))], title=path.name, sweeps={""})


def cells_in_folder(folder: Path) -> CellSet:
    """Returns all media with a record below `folder`, and the jobs that failed. Media without a record are counted."""
    title, identity = _sweep(folder)
    result = CellSet(title=title)
    for place, folders, names in os.walk(folder):
        here = Path(place)
        films = [name for name in folders if is_frames_folder(here / name)]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in films)
        jobs = cells_in_job(here / JOB) if JOB in names else CellSet()
        known = {cell.path.name for cell in jobs.cells}
        result.cells += jobs.cells
        result.failures += jobs.failures
        result.sweeps |= jobs.sweeps
        for name in sorted([*names, *films]):
            path = here / name
            if (name not in films and format_of(path) is None) or name in known or name.startswith("."):
                continue
            if not _is_shown(path):
                result.foreign += 1
                continue
            try:
                result.cells.append(build_cell(path, read_record(path)))
                result.sweeps.add("")
            except MediaError:
                result.foreign += PAGE not in names  # a folder with a report holds its sheets too
    if identity:  # the folder belongs to this sweep, even where it kept files of an earlier one
        result.sweeps = {identity}
    return result


def cells_in_job(file: Path) -> CellSet:
    """Returns the media of a `job.json`, or why there are none; nothing for a file that cannot be read."""
    try:
        job = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return CellSet()
    job = _mapping(job)
    overrides = [str(override) for override in _sequence(job.get("overrides"))]
    if job.get("status") != "done":
        return CellSet(failures=[Failure(overrides, str(job.get("error") or "it did not end"))])
    record = _mapping(job.get("record"))
    images = _sequence(record.get("images"))
    shared = {key: value for key, value in record.items() if key != "images"}
    run_id = str(job["run_id"]) if job.get("run_id") else None
    result = CellSet(sweeps={str(job.get("sweep") or "")})
    for index, entry in enumerate(_sequence(job.get("media"))):
        name = str(_mapping(entry).get("file"))
        path = file.with_name(Path(name).name)
        if not path.exists():
            result.failures.append(Failure(overrides, f"{path.name} is gone"))
            continue
        if not _is_shown(path):
            result.foreign += 1
            continue
        image = _mapping(images[index]) if index < len(images) else {}
        image = {"pixels_sha256": _mapping(entry).get("pixels_sha256"), **image}
        try:
            result.cells.append(build_cell(path, {**shared, "image": image}, run_id))
        except MediaError:
            result.foreign += 1
    return result


def _is_shown(path: Path) -> bool:
    """Returns whether a file holds something to see, rather than sound alone."""
    row = format_of(path)
    return not (isinstance(row, VideoFormat) and not row.has_frames)


def _sweep(folder: Path) -> tuple[str, str]:
    """Returns the name and the identity of a sweep; for another folder its name, and an empty identity."""
    try:
        sweep = _mapping(json.loads((folder / SWEEP).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        sweep = {}
    return str(sweep.get("name") or folder.resolve().name), str(sweep.get("identity") or "")


def _seconds(timings: Mapping[str, Any]) -> float | None:
    """Returns the seconds of a run without loading the weights; None where the record does not say."""
    total, load = (timings.get(name, 0.0) for name in ("total_s", "load_s"))
    if not all(isinstance(value, float | int) and 0 <= value < _FOREVER for value in (total, load)):
        return None
    return max(float(total) - float(load), 0.0) or None


def _file_fields(field: str, value: Any) -> dict[str, Any]:
    """Returns LoRA files, or embeddings, as one field, by their names, and what is said of each as fields such as
    `lora.0.weight`."""
    files = [_mapping(item) for item in _sequence(value)]
    if not files:
        return {}
    fields: dict[str, Any] = {field: ", ".join(PurePath(str(each.get("source"))).name for each in files)}
    for index, each in enumerate(files):
        numbers = flatten({name: item for name, item in each.items() if name != "source" and item is not None})
        fields |= {f"{field}.{index}.{name}": item for name, item in numbers.items()}
    return fields


def _is_left_out(key: str) -> bool:
    group, _, part = key.partition(".")
    return group in _LEFT_OUT or (group in GROUPS and part.partition(".")[0] in _PARTS)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def override_keys(overrides: Iterable[str]) -> set[str]:
    """Returns the fields and groups that overrides name."""
    return {override.partition("=")[0].lstrip("+~").strip() for override in overrides}
