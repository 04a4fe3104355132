"""Many runs side by side: contact sheets, a table, plots, and one page to look through all of it.

Neither torch nor MLflow is imported for files and folders.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse.compare import lookup, page, plots, sheet, table
from diffuse.compare.axes import axes_of, layout
from diffuse.compare.cells import PAGE, Found, of_folder
from diffuse.compare.quality import measured, references_of
from diffuse.errors import MediaError, RunError

if TYPE_CHECKING:
    from diffuse.schema import TrackingConfig

log = logging.getLogger(__name__)

TABLE = "table.csv"
_MEDIA = "media"  # what was fetched from a tracking store


@dataclass(frozen=True)
class Wanted:
    """How a report is to be."""

    axes: Mapping[str, str | None] = field(default_factory=dict)
    """The fields on `x` (columns), `y` (rows) and `z` (sheets); what is not named is chosen from what varies."""
    reference: Sequence[str] = ()
    """What quality is measured against, see quality.references_of."""
    sheets: bool = True
    """Whether contact sheets are made."""


def report(folder: Path, out: Path | None = None, wanted: Wanted | None = None) -> list[Path]:
    """Compares all media below `folder`, a sweep's for instance, and returns the files that it wrote, the page first.

    They go to `out`, or to `report` in `folder`; an earlier report there is replaced.

    Raises:
        ConfigError: an axis or a reference is none of what there is, or the cells have nothing in common.
        MediaError: there is nothing to compare, or a file cannot be read.
        RunError: the files could not be written; nothing of them is left.
    """
    return _make(lambda _: of_folder(folder), out or folder / "report", wanted or Wanted())[1]


def compare(
    names: Sequence[str], out: Path, tracking: Callable[[], TrackingConfig], wanted: Wanted | None = None
) -> list[Path]:
    """Compares what is named: files, folders, and, in the store that `tracking` tells of, runs, sweeps and experiments,
    whose media are fetched into `out` too. As `report` otherwise.

    Where all of it is of one sweep, the run that sums that up in the store gets the files too, below the name of `out`.
    """
    found, files = _make(lambda place: lookup.find(names, tracking, place / _MEDIA), out, wanted or Wanted())
    _add_to_summary(found, out, files, tracking)
    return files


def _add_to_summary(found: Found, out: Path, files: Sequence[Path], tracking: Callable[[], TrackingConfig]) -> None:
    """What is wrong with the store costs the report nothing. Of an untracked sweep nothing is asked there."""
    (sweep,) = found.sweeps if len(found.sweeps) == 1 else ("",)
    if not sweep or not any(cell.run_id for cell in found.cells):
        return
    from diffuse.tracking import query
    from diffuse.tracking.tags import summary_id

    try:
        query.add_files(tracking(), summary_id(sweep), out.resolve().name, files)
    except Exception as error:
        log.warning("the report is in %s, and not in the run of its sweep: %s", out, error)


def _make(find: Callable[[Path], Found], out: Path, wanted: Wanted) -> tuple[Found, list[Path]]:
    try:
        with _staged(out) as (place, moved):
            found = find(place)
            _write(found, place, wanted)
        return found, moved
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"the report could not be written in {out}: {reason}; make room, or give --out another folder"
        ) from error


def _write(found: Found, place: Path, wanted: Wanted) -> None:
    if not found.cells:
        foreign = f"; {found.foreign} without a record of diffuse's are left out" if found.foreign else ""
        raise MediaError(f"{found.title}: no picture or video that diffuse made is there{foreign}; give another folder")
    axes = axes_of(found.cells)
    plan = layout(found.cells, axes, wanted.axes)
    cells = sorted(found.cells, key=lambda cell: [axis.index(cell) for axis in axes])
    rows = measured(cells, references_of(cells, axes, wanted.reference))
    page.write(page.Report(found.title, rows, plan, found.failures), place / PAGE)
    (place / TABLE).write_text(table.csv_text(rows, axes, place), encoding="utf-8", errors="backslashreplace")
    plots.write(rows, plan, place)
    if wanted.sheets:
        sheet.write(cells, plan, place)


@contextmanager
def _staged(out: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A folder beside `out`, so that links from it are those from `out`, and a list: when all went well, what is in the
    folder is moved to `out`, and the list says where. Otherwise nothing of it is left, and an earlier report stays.
    """
    missing = [parent for parent in out.absolute().parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    moved: list[Path] = []
    try:
        with tempfile.TemporaryDirectory(prefix=".diffuse-", dir=out.parent) as place:
            yield Path(place), moved
            moved += _moved(Path(place), out)
    except BaseException:
        with suppress(OSError):
            for parent in missing:  # the innermost first; one that is not empty is another's by now
                parent.rmdir()
        raise


def _moved(place: Path, out: Path) -> list[Path]:
    """Moves a finished report; what an earlier one has left there is removed, and nothing else."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    files.sort(key=lambda path: (path.name != PAGE, path.name != TABLE))
    targets = [out / path.relative_to(place) for path in files]
    if (out / PAGE).is_file():
        for path in out.glob("*.png"):
            if sheet.is_of_report(path):
                path.unlink()
    elif strangers := [target for target in targets if target.exists()]:
        raise MediaError(f"{strangers[0]} is there already and of no report; give --out another folder")
    for path, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    return [target for target in targets if target.parent == out]
