"""Plots as PNG files, for MLflow and for other documents: quality and time against steps.

The page draws its own, which follow what is chosen there. Matplotlib is imported without its window system.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffuse.compare import fonts
from diffuse.compare.axes import STEPS, Axis, Layout, is_number, shown
from diffuse.compare.quality import Measured
from diffuse.compare.sheet import SOFTWARE

_SERIES = 8  # lines that can be told apart
_NAME_CHARACTERS = 30
_QUALITY: dict[str, Callable[[Measured], float | None]] = {
    "PSNR (dB)": lambda row: row.difference.psnr if row.difference else None,
    "SSIM": lambda row: row.difference.ssim if row.difference else None,
    "FLIP": lambda row: row.difference.flip if row.difference else None,
}
_SECONDS: dict[str, Callable[[Measured], float | None]] = {"seconds a picture": lambda row: row.cell.seconds}


def write(rows: Sequence[Measured], plan: Layout, folder: Path) -> list[Path]:
    """Draws what there is into `folder` and returns where: nothing, where no number varies or nothing was measured."""
    along = abscissa(plan.axes)
    if along is None:
        return []
    series = series_of(plan.axes, along)
    paths = []
    for name, curves in (("quality", _QUALITY), ("seconds", _SECONDS)):
        panels = {title: _points(rows, along, series, of) for title, of in curves.items()}
        panels = {title: points for title, points in panels.items() if points}
        if panels:
            what = "steps" if along.key == STEPS else along.key
            path = folder / f"{name}_by_{what}.png"
            _draw(panels, along, series, path)
            paths.append(path)
    return paths


def abscissa(axes: Sequence[Axis]) -> Axis | None:
    """The steps; where they do not vary, the first other number that does, but for seeds, which have no order."""
    numbers = [axis for axis in axes if axis.key != "seed" and all(is_number(value) for value in axis.values)]
    return next((axis for axis in numbers if axis.key == STEPS), None) or (numbers[0] if numbers else None)


def series_of(axes: Sequence[Axis], along: Axis) -> Axis | None:
    """What the lines of a plot tell apart: the first axis with few enough values, other than the seed."""
    others = (axis for axis in axes if axis is not along and axis.key != "seed")
    return next((axis for axis in others if len(axis.values) <= _SERIES), None)


def _points(
    rows: Sequence[Measured], along: Axis, series: Axis | None, of: Callable[[Measured], float | None]
) -> dict[int, dict[float, list[float]]]:
    """By line, and by place on the abscissa, the values there."""
    points: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        value = of(row)
        if value is not None and math.isfinite(value):
            line = points.setdefault(series.index(row.cell) if series else 0, {})
            line.setdefault(float(along.value(row.cell)), []).append(value)
    return points


def _draw(panels: dict[str, dict[int, dict[float, list[float]]]], along: Axis, series: Axis | None, path: Path) -> None:
    from matplotlib import rc_context

    names = [_short(shown(value)) for value in series.values] if series else []
    with rc_context({"font.family": fonts.families("".join(names))}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what a font cannot do
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
        plot.set_xlabel(along.label)
        plot.set_ylabel(title)
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
        if series:
            plot.legend(title=series.label, fontsize=8, title_fontsize=8, frameon=False)
    return figure


def _short(text: str) -> str:
    text = fonts.readable(" ".join(text.split())).replace("$", r"\$")  # which would be mathematics
    return text if len(text) <= _NAME_CHARACTERS else f"{text[: _NAME_CHARACTERS - 1]}…"
