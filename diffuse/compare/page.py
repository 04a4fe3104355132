"""The page of a report: one HTML file with everything in it, that asks for nothing from elsewhere.

Its style and scripts are files beside this one. The media follow as text, each in an element of its own, which the
page turns into an image when it scrolls into view, and forgets when it has gone.
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
from diffuse.compare.axes import FILE, Axis, Layout, format_value
from diffuse.compare.cells import Failure
from diffuse.compare.command import cell_command, command_obstacle
from diffuse.compare.embed import CellMedia, MediaCopy
from diffuse.compare.quality import CellQuality
from diffuse.compare.table import relative_path

_PACKAGE = Path(__file__).resolve().parent
_SCRIPTS = ("media.js", "grid.js", "table.js", "plots.js", "viewer.js", "page.js")
_FEWEST = 8  # a share is never more than an eighth of the budget


@dataclass(frozen=True)
class PageContent:
    """The content of a page."""

    title: str
    rows: Sequence[CellQuality]
    layout: Layout
    failures: Sequence[Failure] = ()


def write_page(content: PageContent, path: Path) -> None:
    """Writes the page to `path`, which its links to the original files start from."""
    cells = [row.cell for row in content.rows]
    share = embed.BUDGET // max(len(cells), _FEWEST)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # codecs let others run meanwhile
        media = list(pool.map(lambda cell: embed.embed_cell(cell, share), cells))
    head, _, tail = (_PACKAGE / "page.html").read_text(encoding="utf-8").partition("<!-- media -->")
    parts = {
        "<!-- title -->": html.escape(content.title),
        "/* style */": (_PACKAGE / "page.css").read_text(encoding="utf-8"),
        "/* script */": "\n".join((_PACKAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "/* data */": _json(_data(content, media, path.parent)),
    }
    for place, text in parts.items():  # the data come last, so that nothing in a prompt is replaced
        before, marker, after = head.partition(place)
        assert marker, f"page.html has no {place}"
        head = f"{before}{text}{after}"
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(head)
        for number, copies in enumerate(media):
            _write(file, f"still-{number}", copies.still)
            _write(file, f"moving-{number}", copies.moving)
        file.write(tail)


def _write(file: TextIO, name: str, media: MediaCopy | None) -> None:
    if media is not None:
        file.write(f'<script type="text/plain" id="{name}">{base64.b64encode(media.data).decode()}</script>\n')


def _json(value: Any) -> str:
    """Returns JSON that can stand inside a script element, whatever the texts in it are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(content: PageContent, media: Sequence[CellMedia], folder: Path) -> dict[str, Any]:
    axes, places = content.layout.axes, {axis.key: place for place, axis in enumerate(content.layout.axes)}
    numbers = {row.cell: number for number, row in enumerate(content.rows)}
    along = plots.abscissa(axes)
    series = plots.series_of(axes, along) if along else None
    return {
        "title": content.title,
        "made": datetime.now().astimezone().isoformat(timespec="minutes"),
        "version": diffuse.__version__,
        "axes": [_axis(axis) for axis in axes],
        "x": places[content.layout.x.key] if content.layout.x else -1,
        "y": places[content.layout.y.key] if content.layout.y else -1,
        "along": places[along.key] if along else -1,
        "series": places[series.key] if series else -1,
        "common": _common(content),
        "failures": [
            {"overrides": " ".join(failure.overrides), "error": failure.error} for failure in content.failures
        ],
        "cells": [_cell(row, axes, copies, numbers, folder) for row, copies in zip(content.rows, media, strict=True)],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    values = [Path(str(value)).name if axis.key == FILE else format_value(value) for value in axis.values]
    return {"key": axis.key, "label": axis.label, "values": values}


def _cell(
    row: CellQuality, axes: Sequence[Axis], media: CellMedia, numbers: dict[Any, int], folder: Path
) -> dict[str, Any]:
    cell, difference = row.cell, row.difference
    return {
        "at": [axis.index(cell) for axis in axes],
        "name": cell.path.name,
        "link": quote(relative_path(cell.path, folder), safe="/:"),
        "size": [media.width, media.height],
        "still": _describe(media.still),
        "moving": _describe(media.moving),
        "video": cell.is_video,
        "sound": media.has_sound,
        "command": cell_command(cell),
        "note": command_obstacle(cell),
        "run": cell.run_id,
        "digest": cell.digest,
        "seconds": cell.seconds,
        "psnr": None if difference is None else _decibels(difference.psnr),
        "ssim": None if difference is None else difference.ssim,
        "flip": None if difference is None else difference.flip,
        "sound_snr": None if difference is None else _decibels(difference.sound_snr),
        "weights_error": max(cell.weights_errors.values(), default=None),
        "reference": None if row.reference is None else numbers[row.reference],
    }


def _decibels(value: float | None) -> float | str | None:
    """Returns a ratio as the page has it: JSON knows no infinity."""
    return "inf" if value is not None and math.isinf(value) else value


def _describe(media: MediaCopy | None) -> dict[str, Any] | None:
    if media is None:
        return None
    return {"mime": media.mime, "size": [media.width, media.height], "exact": media.exact}


def _common(content: PageContent) -> list[list[str]]:
    """Returns the label and value of each field that all cells share, null fields left out."""
    varying = {axis.key for axis in content.layout.axes}
    config = content.rows[0].cell.config
    same = [key for key in config if all(row.cell.config.get(key) == config[key] for row in content.rows[1:])]
    return [
        [Axis(key, ()).label, format_value(config[key])]
        for key in same
        if config[key] not in (None, [], "") and key not in varying
    ]
