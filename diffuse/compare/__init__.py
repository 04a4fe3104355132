"""Many runs side by side: contact sheets, a table, plots, and one page to look through all of it.

Neither torch nor MLflow is imported for files and folders.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffuse.compare import page, plots, sheet, table
from diffuse.compare.axes import axes_of, layout
from diffuse.compare.cells import PAGE, Found, of_folder
from diffuse.compare.quality import measured, references_of
from diffuse.errors import MediaError, RunError

TABLE = "table.csv"


def report(
    folder: Path,
    out: Path | None = None,
    *,
    axes: Mapping[str, str | None] | None = None,
    reference: Sequence[str] = (),
    sheets: bool = True,
) -> list[Path]:
    """Compares all media below `folder`, a sweep's for instance, and returns the files that it wrote.

    They go to `out`, or to `report` in `folder`; an earlier report there is replaced. See `write` for the rest.

    Raises MediaError where there is nothing to compare.
    """
    return write(of_folder(folder), out or folder / "report", axes=axes, reference=reference, sheets=sheets)


def write(
    found: Found,
    out: Path,
    *,
    axes: Mapping[str, str | None] | None = None,
    reference: Sequence[str] = (),
    sheets: bool = True,
) -> list[Path]:
    """Writes the page, the table, the plots and, unless told otherwise, the contact sheets into `out`.

    `axes` names the fields on `x` (columns), `y` (rows) and `z` (sheets); what is not named is chosen from what varies.
    `reference` is what quality is measured against, see quality.references_of. The page comes first in what is returned.

    Raises:
        ConfigError: an axis or a reference is none of what there is, or the cells have nothing in common.
        MediaError: there is nothing to compare, or a file cannot be read.
        RunError: the files could not be written; nothing of them is left.
    """
    if not found.cells:
        foreign = f"; {found.foreign} without a record of diffuse's are left out" if found.foreign else ""
        raise MediaError(f"{found.title}: no picture or video that diffuse made is there{foreign}; give another folder")
    varying = axes_of(found.cells)
    plan = layout(found.cells, varying, axes or {})
    ordered = sorted(found.cells, key=lambda cell: [axis.index(cell) for axis in varying])
    rows = measured(ordered, references_of(ordered, varying, reference))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Made beside it and moved when whole: an interrupted report leaves the earlier one as it was.
        with tempfile.TemporaryDirectory(prefix=".diffuse-", dir=out.parent) as place:
            made = Path(place)
            page.write(page.Report(found.title, rows, plan, found.failures), made / PAGE)
            (made / TABLE).write_text(table.csv_text(rows, varying, out), encoding="utf-8")
            files = [made / PAGE, made / TABLE, *plots.write(rows, plan, made)]
            files += sheet.write(ordered, plan, made) if sheets else []
            return _moved(files, out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"the report could not be written in {out}: {reason}; make room, or give --out another folder"
        ) from error


def _moved(files: Sequence[Path], out: Path) -> list[Path]:
    """Moves a finished report to its place; what an earlier one has left there is removed, and nothing else."""
    out.mkdir(exist_ok=True)
    if (out / PAGE).is_file():
        for path in out.glob("*.png"):
            if sheet.is_of_report(path):
                path.unlink()
    elif strangers := [path.name for path in files if (out / path.name).exists()]:
        raise MediaError(f"{out}: {strangers[0]} is there and of no report; give --out another folder")
    for path in files:
        os.replace(path, out / path.name)
    return [out / path.name for path in files]
