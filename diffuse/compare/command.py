"""The command that makes one cell again, quoted for a shell."""

from __future__ import annotations

import shlex

from diffuse.compare.axes import format_value
from diffuse.compare.cells import Cell
from diffuse.schema import FILE_FIELDS

_WHERE = ("output.dir", "output.name")  # where a file was saved, and where its run was tracked, is not how it was made
_TRACKING = "tracking"


def cell_command(cell: Cell) -> str:
    """Returns `diffuse` with the overrides of this cell alone: its own seed, and its own prompt of a prompt file."""
    settings: dict[str, str] = {}
    for override in cell.overrides:
        name, _, value = override.partition("=")
        if name not in _WHERE and name.partition(".")[0] != _TRACKING:
            settings.pop(name, None)  # of two, the last one counts
            settings[name] = value
    if settings.pop("prompt_file", None) is not None:
        settings["prompt"] = str(cell.config.get("prompt"))
    config = cell.record.get("config") or {}
    settings.pop("num_images", None)
    settings["seed"] = format_value(cell.config.get("seed"))
    if config.get("num_images", 1) != 1 and not any(o.startswith("num_images=") for o in cell.overrides):
        settings["num_images"] = "1"  # an experiment or a model asks for several
    return " ".join(["diffuse", *(f"{name}={shlex.quote(value)}" for name, value in settings.items())])


def command_obstacle(cell: Cell) -> str:
    """Returns why the command does not make the same image; empty where it does."""
    inputs = cell.record.get("inputs")
    if isinstance(inputs, dict) and inputs.get("latents"):
        return "its initial noise was given in Python and is not in the record"
    if any(cell.config.get(name) == "a picture in memory" for name in FILE_FIELDS):
        return "it started from a picture or a clip that was given in Python and is in no file"
    return ""
