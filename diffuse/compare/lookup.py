"""Lookup of names from the command line: files, folders, runs, sweeps and experiments, mixed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse.compare.cells import (
    JOB,
    Cell,
    CellSet,
    Failure,
    build_cell,
    cells_in_file,
    cells_in_folder,
    cells_in_job,
)
from diffuse.errors import ConfigError, DiffuseError, MediaError, NotInStore
from diffuse.media.formats import format_of
from diffuse.media.load import read_record
from diffuse.media.video import is_frames_folder
from diffuse.paths import user_path
from diffuse.tracking.tags import ERROR_TAG, SWEEP_TAG

if TYPE_CHECKING:
    from diffuse.schema import TrackingConfig
    from diffuse.tracking.query import FoundRun, StoreReader

_SWEEPS = Path("outputs", "sweeps")  # where sweeps are, unless output.dir said otherwise
_DIGITS = re.compile(r"[0-9a-f]{4,64}")
_SHOWN = 12  # of a sweep's identity, in its folder's name


def find_cells(names: Sequence[str], tracking: Callable[[], TrackingConfig], download_dir: Path) -> CellSet:
    """Returns the cells of everything that is named.

    Args:
        tracking: gives the store to ask about a name that is neither file nor folder.
        download_dir: where media go that only the store has.

    Raises:
        ConfigError: a name stands for nothing.
        MediaError: a file holds no record.
    """
    result = CellSet()
    reader: StoreReader | None = None
    for name in names:
        cells = _find_on_disk(name)
        if cells is None:
            if reader is None:
                reader = _open_store(name, tracking())
            cells = _find_in_store(name, reader, download_dir)
        result.add(cells)
    return result


def _find_on_disk(name: str) -> CellSet | None:
    """Returns the cells of a file, a folder or a sweep; None for a name that only a store can know."""
    path = user_path(name)
    if path.is_dir() and not is_frames_folder(path):
        return cells_in_folder(path)
    if path.name == JOB and path.is_file():
        return cells_in_job(path)
    if path.exists():
        return cells_in_file(path)
    if format_of(path) is not None or os.sep in name:
        raise ConfigError(f"{name}: there is no such file or folder; check the path")
    sweep = _SWEEPS / name[:_SHOWN]
    if _DIGITS.fullmatch(name) and len(name) >= _SHOWN and sweep.is_dir():
        return cells_in_folder(sweep)
    return None


def _open_store(name: str, tracking: TrackingConfig) -> StoreReader:
    from diffuse.tracking.query import StoreReader

    try:
        return StoreReader(tracking)
    except ConfigError as error:
        raise ConfigError(f"{name}: is no file or folder here, and {error}") from error


def _find_in_store(name: str, reader: StoreReader, download_dir: Path) -> CellSet:
    """Returns the cells of the runs of that id, sweep or experiment."""
    queries: list[Callable[[str], Sequence[FoundRun]]] = [lambda name: [reader.run(name)], reader.sweep]
    for query in [*(queries if _DIGITS.fullmatch(name) else [queries[0]]), reader.experiment]:
        try:
            runs = query(name)
        except NotInStore:
            continue
        return _read_runs(name, runs, reader, download_dir)
    raise ConfigError(
        f"{name}: is no file or folder, and no run, sweep or experiment; diffuse ui shows those there are"
    )


def _read_runs(name: str, runs: Sequence[FoundRun], reader: StoreReader, download_dir: Path) -> CellSet:
    result = CellSet(title=runs[0].name if len(runs) == 1 else name)
    for run in runs:
        try:
            result.add(_read_run(run, reader, download_dir / run.run_id))
        except DiffuseError as error:
            result.failures.append(Failure([], f"{run.name} ({run.run_id}): {error}"))
    if not result.cells:
        reason = result.failures[0].error if result.failures else "it has made none"
        raise MediaError(f"{name}: no run of it has a picture or video; {reason}")
    return result


def _read_run(run: FoundRun, reader: StoreReader, folder: Path) -> CellSet:
    record = reader.record(run, folder)
    if run.status == "FAILED":
        overrides = [str(override) for override in record.get("overrides") or ()]
        return CellSet(failures=[Failure(overrides, run.tags.get(ERROR_TAG, "it failed"))])
    seconds = run.metrics.get("time/total_s")
    if seconds is not None:
        seconds -= run.metrics.get("time/load_s", 0.0)
    files = [path for path in reader.media(run, folder) if format_of(path) is not None or is_frames_folder(path)]
    cells = [_read_cell(path, record, len(files) == 1, run.run_id, seconds) for path in files]
    return CellSet(cells, sweeps={run.tags.get(SWEEP_TAG, "")})


def _read_cell(path: Path, record: Mapping[str, Any], alone: bool, run_id: str, seconds: float | None) -> Cell:
    """Builds a cell from the record in its file; where that holds none, and is the run's only file, from the run's."""
    try:
        own = read_record(path)
    except MediaError:
        images = record.get("images")
        if not alone or not images:
            raise
        own = {**record, "image": images[0]}
    return build_cell(path, own, run_id, seconds)
