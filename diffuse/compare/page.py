"""The page: one HTML file with everything in it, that asks for nothing from elsewhere.

Its style and scripts are files beside this one. The media follow as text, each in an element of its own, which the
page turns into a picture when it scrolls into view and forgets when it has gone.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import diffuse
from diffuse.compare import embed, plots
from diffuse.compare.axes import FILE, Axis, Layout, shown
from diffuse.compare.cells import Failure
from diffuse.compare.command import command, obstacle
from diffuse.compare.embed import Embedded, Inlined
from diffuse.compare.quality import Measured
from diffuse.compare.table import relative

_PACKAGE = Path(__file__).resolve().parent
_SCRIPTS = ("media.js", "grid.js", "table.js", "plots.js", "viewer.js", "page.js")
_FEWEST = 8  # a share is never more than an eighth of the budget


@dataclass(frozen=True)
class Report:
    """What the page tells."""

    title: str
    rows: Sequence[Measured]
    plan: Layout
    failures: Sequence[Failure] = ()


def write(report: Report, path: Path, budget: int = embed.BUDGET) -> None:
    """Writes the page to `path`, which its links to the original files start from."""
    cells = [row.cell for row in report.rows]
    share = budget // max(len(cells), _FEWEST)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # codecs let others run meanwhile
        media = list(pool.map(lambda cell: embed.inline(cell, share), cells))
    head, _, tail = (_PACKAGE / "page.html").read_text(encoding="utf-8").partition("<!-- media -->")
    parts = {
        "<!-- title -->": html.escape(report.title),
        "/* style */": (_PACKAGE / "page.css").read_text(encoding="utf-8"),
        "/* script */": "\n".join((_PACKAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "/* data */": _json(_data(report, media, path.parent)),
    }
    for place, text in parts.items():  # the data come last: whatever prompts hold, nothing in them is replaced
        before, found, after = head.partition(place)
        assert found, f"page.html has no {place}"
        head = f"{before}{text}{after}"
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(head)
        for number, one in enumerate(media):
            _write(file, f"still-{number}", one.still)
            _write(file, f"moving-{number}", one.moving)
        file.write(tail)


def _write(file: TextIO, name: str, embedded: Embedded | None) -> None:
    if embedded is not None:
        file.write(f'<script type="text/plain" id="{name}">{base64.b64encode(embedded.data).decode()}</script>\n')


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever the texts in it are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(report: Report, media: Sequence[Inlined], folder: Path) -> dict[str, Any]:
    axes, places = report.plan.axes, {axis.key: place for place, axis in enumerate(report.plan.axes)}
    numbers = {row.cell: number for number, row in enumerate(report.rows)}
    along = plots.abscissa(axes)
    series = plots.series_of(axes, along) if along else None
    return {
        "title": report.title,
        "made": datetime.now().astimezone().isoformat(timespec="minutes"),
        "version": diffuse.__version__,
        "axes": [_axis(axis) for axis in axes],
        "x": places[report.plan.x.key] if report.plan.x else -1,
        "y": places[report.plan.y.key] if report.plan.y else -1,
        "along": places[along.key] if along else -1,
        "series": places[series.key] if series else -1,
        "common": _common(report),
        "failures": [{"overrides": " ".join(failure.overrides), "error": failure.error} for failure in report.failures],
        "cells": [_cell(row, axes, one, numbers, folder) for row, one in zip(report.rows, media, strict=True)],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    values = [Path(str(value)).name if axis.key == FILE else shown(value) for value in axis.values]
    return {"key": axis.key, "label": axis.label, "values": values}


def _cell(row: Measured, axes: Sequence[Axis], media: Inlined, numbers: dict[Any, int], folder: Path) -> dict[str, Any]:
    cell, apart = row.cell, row.difference
    return {
        "at": [axis.index(cell) for axis in axes],
        "name": cell.path.name,
        "link": quote(relative(cell.path, folder), safe="/:"),
        "size": [media.width, media.height],
        "still": _about(media.still),
        "moving": _about(media.moving),
        "video": cell.is_video,
        "command": command(cell),
        "note": obstacle(cell),
        "run": cell.run_id,
        "digest": cell.digest,
        "seconds": cell.seconds,
        "psnr": None if apart is None else "inf" if math.isinf(apart.psnr) else apart.psnr,
        "ssim": None if apart is None else apart.ssim,
        "flip": None if apart is None else apart.flip,
        "reference": None if row.reference is None else numbers[row.reference],
    }


def _about(embedded: Embedded | None) -> dict[str, Any] | None:
    if embedded is None:
        return None
    return {"mime": embedded.mime, "size": [embedded.width, embedded.height], "exact": embedded.exact}


def _common(report: Report) -> list[list[str]]:
    """What all cells share, null fields left out."""
    varying = {axis.key for axis in report.plan.axes}
    config = report.rows[0].cell.config
    same = [key for key in config if all(row.cell.config.get(key) == config[key] for row in report.rows[1:])]
    return [
        [Axis(key, ()).label, shown(config[key])]
        for key in same
        if config[key] not in (None, [], "") and key not in varying
    ]
