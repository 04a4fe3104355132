"""Plots as PNG files, for MLflow and for other documents: quality and time against steps.

The page draws its own plots, which follow the choices there. Matplotlib is imported without its window system.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffuse.compare import fonts
from diffuse.compare.axes import STEPS, Axis, Layout, format_value, is_number
from diffuse.compare.quality import CellQuality
from diffuse.compare.sheet import SOFTWARE

_TICKS = 10  # numbers that have room below a plot
_SERIES = 8  # lines that an eye can tell apart
_NAME_CHARACTERS = 30
_QUALITY: dict[str, Callable[[CellQuality], float | None]] = {
    "PSNR (dB)": lambda row: row.difference.psnr if row.difference else None,
    "SSIM": lambda row: row.difference.ssim if row.difference else None,
    "FLIP": lambda row: row.difference.flip if row.difference else None,
    "sound SNR (dB)": lambda row: row.difference.sound_snr if row.difference else None,
}
_SECONDS: dict[str, Callable[[CellQuality], float | None]] = {"seconds a picture": lambda row: row.cell.seconds}


def draw_plots(rows: Sequence[CellQuality], layout: Layout, folder: Path) -> list[Path]:
    """Draws the plots as PNG files into `folder` and returns their paths; none where no number varies."""
    along = abscissa(layout.axes)
    if along is None:
        return []
    series = series_of(layout.axes, along)
    paths = []
    for name, curves in (("quality", _QUALITY), ("seconds", _SECONDS)):
        panels = {title: _points(rows, along, series, measure) for title, measure in curves.items()}
        panels = {title: points for title, points in panels.items() if points}
        if panels:
            abscissa_name = "steps" if along.key == STEPS else along.key
            path = folder / f"{name}_by_{abscissa_name}.png"
            _draw(panels, along, series, path)
            paths.append(path)
    return paths


def abscissa(axes: Sequence[Axis]) -> Axis | None:
    """Returns the axis of the steps, or else the first other number that varies. Seeds have no order and are none."""
    numbers = [axis for axis in axes if axis.key != "seed" and all(is_number(value) for value in axis.values)]
    return next((axis for axis in numbers if axis.key == STEPS), None) or (numbers[0] if numbers else None)


def series_of(axes: Sequence[Axis], along: Axis) -> Axis | None:
    """Returns the axis that has one line for each value: the first with few enough values, other than the seed."""
    others = (axis for axis in axes if axis is not along and axis.key != "seed")
    return next((axis for axis in others if len(axis.values) <= _SERIES), None)


def _points(
    rows: Sequence[CellQuality], along: Axis, series: Axis | None, measure: Callable[[CellQuality], float | None]
) -> dict[int, dict[float, list[float]]]:
    """Returns values by line, then by their place on the abscissa."""
    points: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        value = measure(row)
        if value is not None and math.isfinite(value):
            line = points.setdefault(series.index(row.cell) if series else 0, {})
            line.setdefault(float(along.value(row.cell)), []).append(value)
    return points


def _draw(panels: dict[str, dict[int, dict[float, list[float]]]], along: Axis, series: Axis | None, path: Path) -> None:
    from matplotlib import rc_context

    names = [_short(format_value(value)) for value in series.values] if series else []
    with rc_context({"font.family": fonts.font_families("".join(names))}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about features that a font lacks
        figure = _figure(panels, along, series, names)
        figure.savefig(path, metadata={"Software": SOFTWARE})


def _figure(
    panels: dict[str, dict[int, dict[float, list[float]]]], along: Axis, series: Axis | None, names: Sequence[str]
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 3.8), dpi=110, layout="constrained")
    plots: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for plot, (title, lines) in zip(plots, panels.items(), strict=True):
        for number, line in sorted(lines.items()):
            places = sorted(line)
            colour = f"C{number}"
            for place in places:
                plot.plot([place] * len(line[place]), line[place], ".", color=colour, alpha=0.25, markersize=4)
            means = [statistics.fmean(line[place]) for place in places]
            plot.plot(places, means, "o-", color=colour, markersize=4, label=names[number] if series else None)
        if all(isinstance(value, int) for value in along.values) and len(along.values) <= _TICKS:
            plot.set_xticks(along.values)  # or it would divide what is counted
        plot.set_xlabel(along.label)
        plot.set_ylabel(title)
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
        if series:
            plot.legend(title=series.label, fontsize=8, title_fontsize=8, frameon=False)
    return figure


def _short(text: str) -> str:
    text = fonts.drawable_text(" ".join(text.split()), coloured=False).replace("$", r"\$")  # which would be mathematics
    return text if len(text) <= _NAME_CHARACTERS else f"{text[: _NAME_CHARACTERS - 1]}…"
