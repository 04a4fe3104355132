"""What a user names on the command line, found: files, folders, runs, sweeps and experiments, mixed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse.compare import cells
from diffuse.compare.cells import Cell, Failure, Found
from diffuse.errors import ConfigError, DiffuseError, MediaError
from diffuse.media.formats import format_of
from diffuse.media.load import read_record

if TYPE_CHECKING:
    from diffuse.schema import TrackingConfig
    from diffuse.tracking.query import FoundRun, StoreReader

_SWEEPS = Path("outputs", "sweeps")  # where sweeps are, unless output.dir said otherwise
_DIGITS = re.compile(r"[0-9a-f]{4,64}")
_SHOWN = 12  # of a sweep's identity, in its folder's name


def find(names: Sequence[str], tracking: Callable[[], TrackingConfig], fetched: Path) -> Found:
    """The cells of everything that is named. `tracking` says which store to ask for what is neither file nor folder,
    and media that are only there come to `fetched`.

    Raises:
        ConfigError: there is nothing of a name.
        MediaError: a file holds no record.
    """
    found = Found()
    reader: StoreReader | None = None
    for name in names:
        here = _on_disk(name)
        if here is None:
            if reader is None:
                reader = _reader(name, tracking())
            here = _in_store(name, reader, fetched)
        found.add(here)
    return found


def _on_disk(name: str) -> Found | None:
    """None where the name is that of a run, a sweep or an experiment."""
    path = Path(name)
    if path.is_dir():
        return cells.of_folder(path)
    if path.name == cells.JOB and path.is_file():
        return cells.of_job(path)
    if path.is_file():
        return cells.of_file(path)
    if format_of(path) is not None or os.sep in name:
        raise ConfigError(f"{name}: there is no such file or folder; check the path")
    sweep = _SWEEPS / name[:_SHOWN]
    if _DIGITS.fullmatch(name) and len(name) >= _SHOWN and sweep.is_dir():
        return cells.of_folder(sweep)
    return None


def _reader(name: str, tracking: TrackingConfig) -> StoreReader:
    from diffuse.tracking.query import StoreReader

    try:
        return StoreReader(tracking)
    except ConfigError as error:
        raise ConfigError(f"{name}: is no file or folder here, and {error}") from error


def _in_store(name: str, reader: StoreReader, fetched: Path) -> Found:
    """The runs of that id, sweep or experiment."""
    askers: list[Callable[[str], Sequence[FoundRun]]] = [lambda name: [reader.run(name)], reader.sweep]
    for ask in [*(askers if _DIGITS.fullmatch(name) else [askers[0]]), reader.experiment]:
        try:
            runs = ask(name)
        except ConfigError:  # there is none of that kind
            continue
        return _of_runs(name, runs, reader, fetched)
    raise ConfigError(
        f"{name}: is no file or folder, and no run, sweep or experiment; diffuse ui shows those there are"
    )


def _of_runs(name: str, runs: Sequence[FoundRun], reader: StoreReader, fetched: Path) -> Found:
    found = Found(title=runs[0].name if len(runs) == 1 else name)
    for run in runs:
        place = fetched / run.run_id
        try:
            found.add(_of_run(run, reader, place))
        except DiffuseError as error:
            found.failures.append(Failure([], f"{run.name} ({run.run_id}): {error}"))
    if not found.cells:
        said = found.failures[0].error if found.failures else "it has made none"
        raise MediaError(f"{name}: no run of it has a picture or video; {said}")
    return found


def _of_run(run: FoundRun, reader: StoreReader, place: Path) -> Found:
    record = reader.record(run, place)
    if run.status == "FAILED":
        overrides = [str(override) for override in record.get("overrides") or ()]
        return Found(failures=[Failure(overrides, run.tags.get("diffuse.error", "it failed"))])
    seconds = run.metrics.get("time/total_s")
    if seconds is not None:
        seconds -= run.metrics.get("time/load_s", 0.0)
    files = [path for path in reader.media(run, place) if format_of(path) is not None]
    made = [_cell(path, record, len(files) == 1, run.run_id, seconds) for path in files]
    return Found(made, sweeps={run.tags.get("diffuse.sweep", "")})


def _cell(path: Path, record: Mapping[str, Any], alone: bool, run_id: str, seconds: float | None) -> Cell:
    """By the record in the file; where it holds none, and is the only one, by the run's."""
    try:
        own = read_record(path)
    except MediaError:
        images = record.get("images")
        if not alone or not images:
            raise
        own = {**record, "image": images[0]}
    return cells.cell_of(path, own, run_id, seconds)
