"""How far each cell is from its reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from diffuse.compare import axes as axis_names
from diffuse.compare.axes import Axis, shown
from diffuse.compare.cells import Cell
from diffuse.compare.metrics import Difference, difference
from diffuse.compare.pixels import read
from diffuse.errors import ConfigError

_KEPT = 8  # references whose pixels stay in memory


@dataclass(frozen=True, eq=False)
class Measured:
    """A cell, what it is compared with, and how far it is from that."""

    cell: Cell
    reference: Cell | None = None  # the cell itself where it is one
    difference: Difference | None = None  # None where there is no reference, or one of another size


def measured(cells: Sequence[Cell], references: Mapping[Cell, Cell]) -> list[Measured]:
    """The cells in their order, each with its difference from what `references` gives for it."""
    kept = lru_cache(_KEPT)(_pixels)

    def one(cell: Cell) -> Measured:
        reference = references.get(cell)
        if reference is None or reference is cell:
            return Measured(cell, reference)
        return Measured(cell, reference, difference(_pixels(cell), kept(reference)))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # numpy and FLIP let others run meanwhile
        return list(pool.map(one, cells))


def _pixels(cell: Cell) -> np.ndarray:
    return read(cell)


def references_of(cells: Sequence[Cell], axes: Sequence[Axis], wanted: Sequence[str] = ()) -> dict[Cell, Cell]:
    """Each cell's reference: the one that agrees with it in everything but the steps and has the most of those.

    `wanted` says otherwise: a file or a run, to which every cell is compared; or `FIELD=VALUE`, one or several, for the
    one that has these values and agrees in everything else.

    Raises ConfigError where none of the cells is that.
    """
    fields = [text for text in wanted if _field(text, axes)]
    others = [text for text in wanted if text not in fields]
    if others:
        if len(wanted) > 1:
            raise ConfigError(f"--reference {others[0]}: is one cell, which leaves no choice for {' '.join(wanted)}")
        return dict.fromkeys(cells, _one(cells, axes, others[0]))
    if fields:
        return _by_values(cells, axes, fields)
    steps = next((axis for axis in axes if axis.key == axis_names.STEPS), None)
    if steps is None:
        return {}
    most: dict[tuple[int, ...], Cell] = {}
    for cell in cells:
        group = _group(cell, axes, [steps])
        if group not in most or steps.index(cell) > steps.index(most[group]):
            most[group] = cell
    return {cell: most[_group(cell, axes, [steps])] for cell in cells}


def _by_values(cells: Sequence[Cell], axes: Sequence[Axis], fields: Sequence[str]) -> dict[Cell, Cell]:
    places: dict[Axis, int] = {}
    for text in fields:
        axis = _field(text, axes)
        assert axis is not None
        value = text.partition("=")[2]
        values = [shown(known) for known in axis.values]
        if value not in values:
            raise ConfigError(f"--reference {text}: no cell has that; {axis.key} is one of {', '.join(values)}")
        places[axis] = values.index(value)
    found: dict[tuple[int, ...], Cell] = {}
    for cell in cells:
        if all(axis.index(cell) == place for axis, place in places.items()):
            found.setdefault(_group(cell, axes, list(places)), cell)
    if not found:
        raise ConfigError(f"--reference {' '.join(fields)}: no cell has all of that; leave one out")
    by_group = {cell: found.get(_group(cell, axes, list(places))) for cell in cells}
    return {cell: reference for cell, reference in by_group.items() if reference is not None}


def _one(cells: Sequence[Cell], axes: Sequence[Axis], name: str) -> Cell:
    path = Path(name)
    for cell in cells:
        if cell.run_id == name or (path.is_file() and path.resolve() == cell.path.resolve()):
            return cell
    named = [cell for cell in cells if cell.path.name == name]
    if len(named) == 1:
        return named[0]
    keys = ", ".join(axis.key for axis in axes)
    raise ConfigError(
        f"--reference {name}: is not among the cells; give the file or the run of one, or FIELD=VALUE of what varies: "
        f"{keys or 'none does'}"
    )


def _field(text: str, axes: Sequence[Axis]) -> Axis | None:
    name, equals, _ = text.partition("=")
    return next((axis for axis in axes if equals and name.lower() in (axis.key, axis.label.lower())), None)


def _group(cell: Cell, axes: Sequence[Axis], without: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(axis.index(cell) for axis in axes if axis not in without)
