"""Reports: the cells are found and measured, and the page, table, plots and sheets are written, all or nothing."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse.compare.axes import find_axes, place_axes
from diffuse.compare.cells import PAGE, CellSet, cells_in_folder
from diffuse.compare.lookup import find_cells
from diffuse.compare.page import PageContent, write_page
from diffuse.compare.plots import draw_plots
from diffuse.compare.quality import find_references, measure_cells
from diffuse.compare.sheet import draw_sheets, is_report_image
from diffuse.compare.table import format_csv
from diffuse.errors import MediaError, RunError

if TYPE_CHECKING:
    from diffuse.schema import TrackingConfig

log = logging.getLogger(__name__)

TABLE = "table.csv"
_MEDIA = "media"  # the folder of files that come from a tracking store


@dataclass(frozen=True)
class ReportOptions:
    """The choices that a user has for a report."""

    axes: Mapping[str, str | None] = field(default_factory=dict)
    """The fields on `x` (columns), `y` (rows) and `z` (sheets); the others are chosen from those that vary."""
    reference: Sequence[str] = ()
    """The cells that quality is measured against, see `quality.find_references`."""
    sheets: bool = True
    """Draw contact sheets."""


def compare_folder(folder: Path, out: Path | None = None, options: ReportOptions | None = None) -> list[Path]:
    """Compares all media below `folder`, a sweep's for instance, and returns the files that it wrote, the page first.

    They go to `out`, or to `report` in `folder`; an earlier report there is replaced.

    Raises:
        ConfigError: an axis or a reference does not exist, or the cells have nothing in common.
        MediaError: there is nothing to compare, or a file cannot be read.
        RunError: the files could not be written; nothing of them is left.
    """
    return _report(lambda _: cells_in_folder(folder), out or folder / "report", options or ReportOptions())[1]


def compare_names(
    names: Sequence[str], out: Path, tracking: Callable[[], TrackingConfig], options: ReportOptions | None = None
) -> list[Path]:
    """Compares files, folders, runs, sweeps and experiments, and returns the files that it wrote, the page first.

    Media that only the tracking store has are downloaded into `out` too. Where all cells are of one sweep, its summary
    run in the store gets the report as well, below the name of `out`.

    Args:
        tracking: gives the store in which runs, sweeps and experiments are looked up.

    Raises:
        ConfigError, MediaError, RunError: as `compare_folder`; or a name stands for nothing.
    """
    cells, files = _report(lambda folder: find_cells(names, tracking, folder / _MEDIA), out, options or ReportOptions())
    _add_to_summary(cells, out, files, tracking)
    return files


def _add_to_summary(cells: CellSet, out: Path, files: Sequence[Path], tracking: Callable[[], TrackingConfig]) -> None:
    """Adds the files to the summary run of the cells' sweep. The report stays where the store fails."""
    (sweep,) = cells.sweeps if len(cells.sweeps) == 1 else ("",)
    if not sweep or not any(cell.run_id for cell in cells.cells):  # an untracked sweep has no summary run
        return
    from diffuse.tracking import query
    from diffuse.tracking.tags import summary_id

    try:
        query.add_files(tracking(), summary_id(sweep), out.resolve().name, files)
    except Exception as error:
        log.warning("the report is in %s, and not in the run of its sweep: %s", out, error)


def _report(find: Callable[[Path], CellSet], out: Path, options: ReportOptions) -> tuple[CellSet, list[Path]]:
    try:
        with _staging_folder(out) as (folder, moved):
            cells = find(folder)
            _write(cells, folder, options)
        return cells, moved
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"the report could not be written in {out}: {reason}; make room, or give --out another folder"
        ) from error


def _write(cell_set: CellSet, folder: Path, options: ReportOptions) -> None:
    if not cell_set.cells:
        foreign = f"; {cell_set.foreign} without a record of diffuse's are left out" if cell_set.foreign else ""
        raise MediaError(
            f"{cell_set.title}: no picture or video that diffuse made is there{foreign}; give another folder"
        )
    axes = find_axes(cell_set.cells)
    layout = place_axes(cell_set.cells, axes, options.axes)
    cells = sorted(cell_set.cells, key=lambda cell: [axis.index(cell) for axis in axes])
    rows = measure_cells(cells, find_references(cells, axes, options.reference))
    write_page(PageContent(cell_set.title, rows, layout, cell_set.failures), folder / PAGE)
    (folder / TABLE).write_text(format_csv(rows, axes, folder), encoding="utf-8", errors="backslashreplace")
    draw_plots(rows, layout, folder)
    if options.sheets:
        draw_sheets(cells, layout, folder)


@contextmanager
def _staging_folder(out: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yields a temporary folder next to `out`, so that links from both are the same, and a list of paths.

    When the block has ended well, the files are moved to `out` and the list holds their new paths. After an error
    nothing of them is left, and an earlier report stays.
    """
    missing = [parent for parent in out.absolute().parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    moved: list[Path] = []
    try:
        with tempfile.TemporaryDirectory(prefix=".diffuse-", dir=out.parent) as folder:
            yield Path(folder), moved
            moved += _move(Path(folder), out)
    except BaseException:
        with suppress(OSError):
            for parent in missing:  # the innermost first; one that is not empty is another's by now
                parent.rmdir()
        raise


def _move(folder: Path, out: Path) -> list[Path]:
    """Moves a finished report and returns its new paths; the images of an earlier report are removed, nothing else."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: (path.name != PAGE, path.name != TABLE))
    targets = [out / path.relative_to(folder) for path in files]
    if (out / PAGE).is_file():
        for path in out.glob("*.png"):
            if is_report_image(path):
                path.unlink()
    elif strangers := [target for target in targets if target.exists()]:
        raise MediaError(f"{strangers[0]} is there already and of no report; give --out another folder")
    for path, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    return [target for target in targets if target.parent == out]
