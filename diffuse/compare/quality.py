"""The quality of cells: how far each is from its reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

from diffuse.compare.axes import STEPS, Axis, format_value
from diffuse.compare.cells import Cell
from diffuse.compare.metrics import Difference, measure_difference
from diffuse.compare.pixels import read_frames, read_sound_of
from diffuse.errors import ConfigError
from diffuse.media.sound import sound_snr
from diffuse.paths import user_path

_KEPT = 8  # references whose pixels stay in memory


@dataclass(frozen=True, eq=False)
class CellQuality:
    """A cell, its reference, and how far it is from that."""

    cell: Cell
    reference: Cell | None = None  # the cell itself where it is one
    difference: Difference | None = None  # None where there is no reference, or one of another size


def measure_cells(cells: Sequence[Cell], references: Mapping[Cell, Cell]) -> list[CellQuality]:
    """Measures the cells, in their order, against their references."""
    read_reference, read_reference_sound = lru_cache(_KEPT)(read_frames), lru_cache(_KEPT)(read_sound_of)

    def measure(cell: Cell) -> CellQuality:
        reference = references.get(cell)
        if reference is None or reference is cell:
            return CellQuality(cell, reference)
        difference = measure_difference(read_frames(cell), read_reference(reference))
        ours, theirs = read_sound_of(cell), read_reference_sound(reference)
        if difference is not None and ours is not None and theirs is not None and ours[1] == theirs[1]:
            difference = replace(difference, sound_snr=sound_snr(ours[0], theirs[0]))
        return CellQuality(cell, reference, difference)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # numpy and FLIP let others run meanwhile
        return list(pool.map(measure, cells))


def find_references(cells: Sequence[Cell], axes: Sequence[Axis], choice: Sequence[str] = ()) -> dict[Cell, Cell]:
    """Returns each cell's reference: the one that agrees with it in everything but the steps and has the most of those.

    Args:
        choice: another rule. A file or a run is the reference of every cell; with `FIELD=VALUE`, one or several, it is
            the cell that has these values and agrees in everything else.

    Raises:
        ConfigError: no cell is the chosen one.
    """
    fields = [text for text in choice if _field(text, axes)]
    others = [text for text in choice if text not in fields]
    if others:
        if len(choice) > 1:
            raise ConfigError(f"--reference {others[0]}: is one cell, which leaves no choice for {' '.join(choice)}")
        return dict.fromkeys(cells, _by_name(cells, axes, others[0]))
    if fields:
        return _by_values(cells, axes, fields)
    steps = next((axis for axis in axes if axis.key == STEPS), None)
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
        values = [format_value(known) for known in axis.values]
        if value == "null" and None in axis.values:  # as it is typed
            value = format_value(None)
        if value not in values:
            raise ConfigError(f"--reference {text}: no cell has that; {axis.key} is one of {', '.join(values)}")
        places[axis] = values.index(value)
    references: dict[tuple[int, ...], Cell] = {}
    for cell in cells:
        if all(axis.index(cell) == place for axis, place in places.items()):
            references.setdefault(_group(cell, axes, list(places)), cell)
    if not references:
        raise ConfigError(f"--reference {' '.join(fields)}: no cell has all of that; leave one out")
    by_group = {cell: references.get(_group(cell, axes, list(places))) for cell in cells}
    return {cell: reference for cell, reference in by_group.items() if reference is not None}


def _by_name(cells: Sequence[Cell], axes: Sequence[Axis], name: str) -> Cell:
    path = user_path(name, "--reference")
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
