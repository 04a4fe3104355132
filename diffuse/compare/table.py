"""The table: one line a cell, with how it was made, how long that took and how far it is from its reference."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffuse.compare.axes import FILE, STEPS, Axis, shown
from diffuse.compare.quality import Measured

_ALWAYS = ("seed", STEPS, "scheduler")


def csv_text(rows: Sequence[Measured], axes: Sequence[Axis], folder: Path) -> str:
    """The table as CSV; files are named as they are found from `folder`."""
    keys = list(dict.fromkeys((*_ALWAYS, *(axis.key for axis in axes if axis.key != FILE))))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "run_id", *keys, "seconds", "psnr_db", "ssim", "flip", "reference", "pixels_sha256"])
    for row in rows:
        cell, apart = row.cell, row.difference
        values = [shown(cell.config.get(key)) if cell.config.get(key) is not None else "" for key in keys]
        far = [_number(apart.psnr), _number(apart.ssim), _number(apart.flip)] if apart else ["", "", ""]
        reference = "" if row.reference is None else relative(row.reference.path, folder)
        file = relative(cell.path, folder)
        writer.writerow([file, cell.run_id or "", *values, _number(cell.seconds), *far, reference, cell.digest])
    return out.getvalue()


def relative(path: Path, folder: Path) -> str:
    """`path` as it is found from `folder`, with slashes."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"
