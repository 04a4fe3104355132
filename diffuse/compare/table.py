"""The table of a report: one line a cell, with how it was made, how long that took and its quality."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffuse.compare.axes import FILE, STEPS, Axis, format_value
from diffuse.compare.quality import CellQuality

_ALWAYS = ("seed", STEPS, "scheduler")


def format_csv(rows: Sequence[CellQuality], axes: Sequence[Axis], folder: Path) -> str:
    """Returns the table as CSV; files are named by their paths from `folder`."""
    keys = list(dict.fromkeys((*_ALWAYS, *(axis.key for axis in axes if axis.key != FILE))))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    has_sound = any(row.difference is not None and row.difference.sound_snr is not None for row in rows)
    sound = ["sound_snr_db"] if has_sound else []
    errors = ["weights_error"] if any(row.cell.weights_errors for row in rows) else []
    writer.writerow(
        ["file", "run_id", *keys, "seconds", "psnr_db", "ssim", "flip", *sound, *errors, "reference", "pixels_sha256"]
    )
    for row in rows:
        cell, difference = row.cell, row.difference
        values = [format_value(cell.config.get(key)) if cell.config.get(key) is not None else "" for key in keys]
        metrics = [None if difference is None else getattr(difference, name) for name in ("psnr", "ssim", "flip")]
        metrics += [None if difference is None else difference.sound_snr for _ in sound]
        lost = [" ".join(f"{name}={error:.4g}" for name, error in cell.weights_errors.items()) for _ in errors]
        reference = "" if row.reference is None else relative_path(row.reference.path, folder)
        file = relative_path(cell.path, folder)
        writer.writerow(
            [
                file,
                cell.run_id or "",
                *values,
                _number(cell.seconds),
                *map(_number, metrics),
                *lost,
                reference,
                cell.digest,
            ]
        )
    return out.getvalue()


def relative_path(path: Path, folder: Path) -> str:
    """Returns `path` as it is found from `folder`, with slashes."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"
