"""The fields that vary among cells, and which of them lie on the columns, the rows and the sheets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffuse.compare.cells import GROUPS, Cell, override_keys
from diffuse.errors import ConfigError
from diffuse.schema import PROMPT_FIELDS

STEPS = "num_inference_steps"
_LARGEST = 1e300
FILE = "file"  # the axis of cells that differ in nothing but their files

_LABELS = {
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "guidance_scale": "CFG scale",
    "guidance_rescale": "CFG rescale",
    "seed": "Seed",
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "model": "Model",
    "model.source": "Source",
    "lora": "LoRA",
    "lora.0.weight": "LoRA weight",
    "embedding": "Embedding",
    "hardware.dtype": "Precision",
    "strength": "Strength",
    "width": "Width",
    "height": "Height",
    "num_frames": "Frames",
    "input_image": "Input",
    "last_image": "Last image",
    "input_video": "Clip",
    "memory_profile": "Memory profile",
    FILE: "File",
}
_TEXTS = (*PROMPT_FIELDS, FILE)  # read better in a row's head
_FIRST = ("prompt", "negative_prompt", "model", "scheduler", STEPS, "guidance_scale", "strength")
# Where no two cells agree in any of these, there is nothing to line them up by.
_ESSENTIAL = ("prompt", "model", "scheduler", "seed", STEPS, "guidance_scale", "width", "height")


@dataclass(frozen=True)
class Axis:
    """A field with the values that it takes, in order."""

    key: str
    values: tuple[Any, ...]

    @property
    def label(self) -> str:
        """Its name on a sheet: the one that image viewers use, otherwise the dotted name."""
        return _LABELS.get(self.key, self.key)

    def title(self, value: Any) -> str:
        """Returns the heading of a value, such as `Steps: 20`."""
        return f"{self.label}: {format_value(value)}"

    def index(self, cell: Cell) -> int:
        """Returns the index of the cell's value in `values`."""
        return self._places[_same(value_of(cell, self.key))]

    def value(self, cell: Cell) -> Any:
        """Returns the cell's value of this field."""
        return value_of(cell, self.key)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {_same(value): place for place, value in enumerate(self.values)}


@dataclass(frozen=True)
class Layout:
    """The axes on the columns (`x`), the rows (`y`) and the sheets, out of all `axes`."""

    axes: tuple[Axis, ...]
    x: Axis | None
    y: Axis | None
    sheets: tuple[Axis, ...]


def value_of(cell: Cell, key: str) -> Any:
    """Returns the cell's value of a field; for FILE, the name of its file."""
    return str(cell.path) if key == FILE else cell.config.get(key)


def format_value(value: Any) -> str:
    """Returns a value as one types it on the command line; null is `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def find_axes(cells: Sequence[Cell]) -> list[Axis]:
    """Returns an axis for each field that varies.

    Consequences are left out: options that only another sampler or model has, and fields that nobody set and that
    follow from those that were set. Where nothing varies, the file is the axis.

    Raises:
        ConfigError: the cells have nothing in common.
    """
    _check_common(cells)
    keys = list(dict.fromkeys(key for cell in cells for key in cell.config))
    varying = [key for key in keys if len({_same(cell.config.get(key)) for cell in cells}) > 1]
    varying = [key for key in varying if not _is_option_of_another(key, cells, varying)]
    overridden = set().union(*(override_keys(cell.overrides) for cell in cells))
    alike = _used_alike(cells)
    varying = [key for key in varying if key in overridden or key.partition(".")[0] not in alike]
    kept = [key for key in varying if key in overridden or key == "seed"]
    for key in sorted((key for key in varying if key not in kept), key=_rank):
        if not _follows(key, kept, cells):
            kept.append(key)
    if not kept and len(cells) > 1:
        kept = [FILE]
    return [_axis(key, cells) for key in sorted(kept, key=_rank)]


def place_axes(cells: Sequence[Cell], axes: Sequence[Axis], choice: Mapping[str, str | None]) -> Layout:
    """Returns where each axis lies.

    Those that are not chosen follow by their number of values: the most on X, the next on Y, except that texts read
    better in rows. The others make sheets.

    Args:
        choice: names of axes by `x`, `y` and `z`; None leaves one open.

    Raises:
        ConfigError: a name is no axis, or is given twice.
    """
    named = {place: _named(axes, place, name) for place, name in choice.items() if name}
    taken = [axis.key for axis in named.values()]
    if twice := [key for key in taken if taken.count(key) > 1]:
        places = " ".join(f"--{place} {axis.key}" for place, axis in named.items() if axis.key == twice[0])
        raise ConfigError(f"{places}: a field lies on one axis; choose another for one of them")
    free = sorted(
        (axis for axis in axes if axis.key not in taken), key=lambda axis: (-len(axis.values), axis.key != "seed")
    )
    chosen = dict(named)
    for place in ("x", "y"):
        if place not in chosen:
            fixed = [axis.key for axis in chosen.values()]
            candidates = [axis for axis in free if not _follows(axis.key, fixed, cells)]
            if candidates:
                chosen[place] = candidates[0]
                free.remove(candidates[0])
    x, y, z = (chosen.get(place) for place in ("x", "y", "z"))
    if x and y and x.key in _TEXTS and y.key not in _TEXTS and not {"x", "y"} & named.keys():
        x, y = y, x
    sheets = [z] if z else []
    for axis in sorted(free, key=lambda axis: _rank(axis.key)):
        if not _follows(axis.key, [known.key for known in (x, y, *sheets) if known], cells):
            sheets.append(axis)
    return Layout(tuple(axes), x, y, tuple(sheets))


def _named(axes: Sequence[Axis], place: str, name: str) -> Axis:
    for axis in axes:
        if name.lower() in (axis.key, axis.label.lower()):
            return axis
    from diffuse.config.mistakes import suggestion  # which imports Hydra

    keys = [axis.key for axis in axes]
    by_label = {axis.label.lower(): axis.key for axis in axes}
    near = suggestion(name, [*keys, *by_label])
    for label, key in by_label.items():
        near = near.replace(f"mean {label}?", f"mean {key}?")
    varies = f"these vary: {', '.join(keys)}" if keys else "nothing varies"
    raise ConfigError(f"--{place} {name}: that does not vary among the cells{near or f'; {varies}'}")


def _axis(key: str, cells: Sequence[Cell]) -> Axis:
    values = {_same(value): value for value in (value_of(cell, key) for cell in cells)}
    return Axis(key, tuple(sorted(values.values(), key=_order)))


def _order(value: Any) -> tuple[int, float, str]:
    """Returns a sort key: null first, then numbers by size, then texts."""
    if value is None:
        return 0, 0.0, ""
    if is_number(value):
        return 1, float(value), ""
    return 2, 0.0, format_value(value)


def is_number(value: Any) -> bool:
    """Returns true for a value that has a place on a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _rank(key: str) -> tuple[int, str]:
    return (_FIRST.index(key) if key in _FIRST else len(_FIRST) + (key == "seed"), key)


def _used_alike(cells: Sequence[Cell]) -> set[str]:
    """Returns the groups of which `auto` chose for some cells what others name, as a reproduction does."""
    used: dict[str, set[str | None]] = {"hardware": set(), "memory_profile": set()}
    for cell in cells:
        machine, process = (_mapping(cell.record.get(name)) for name in ("hardware", "determinism"))
        device, profile = machine.get("device"), _mapping(machine.get("memory_profile"))
        facts = [device, machine.get("dtypes"), machine.get("deterministic"), process.get("threads")]
        used["hardware"].add(None if device is None else _same(facts))
        used["memory_profile"].add(None if profile.get("name") is None else _same(profile["name"]))
    return {group for group, values in used.items() if len(values) == 1 and None not in values}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_option_of_another(key: str, cells: Sequence[Cell], varying: Sequence[str]) -> bool:
    """Returns true where, for example, `scheduler.eta` differs only because samplers do, which have other options."""
    group, _, option = key.partition(".")
    return bool(option) and group in GROUPS and group in varying and _follows(key, [group], cells)


def _follows(key: str, others: Sequence[str], cells: Sequence[Cell]) -> bool:
    """Returns true where the values of `others` leave no choice for that of `key`."""
    if not others:
        return False
    seen: dict[tuple[str, ...], str] = {}
    for cell in cells:
        values = tuple(_same(value_of(cell, other)) for other in others)
        if seen.setdefault(values, _same(value_of(cell, key))) != _same(value_of(cell, key)):
            return False
    return True


def _check_common(cells: Sequence[Cell]) -> None:
    if len({cell.is_video for cell in cells}) > 1:
        raise ConfigError("pictures and videos have nothing in common to compare; give only one kind")
    if len(cells) < 2:
        return
    for key in _ESSENTIAL:
        values = [_same(cell.config.get(key)) for cell in cells]
        if len(set(values)) < len(values):
            return
    raise ConfigError(
        "the runs have nothing in common: prompt, model, sampler, seed, steps, guidance and size differ between any "
        "two of them; give runs that share some of it"
    )


def _same(value: Any) -> str:
    """Returns a text that is equal for equal values: 7 and 7.0 are equal, "7" is another."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
