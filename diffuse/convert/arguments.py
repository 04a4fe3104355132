"""The arguments of `diffuse convert`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from diffuse.errors import ConfigError
from diffuse.models.single_file.describe import PREDICTIONS, SAID_PREDICTION
from diffuse.paths import user_path

PRECISIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")  # of which the first is written
_OPTIONS = ("--precision", "--shard-size")
_TAKEN = re.compile(r"(model|model\.\w+(\.\w+)?|scheduler\.prediction_type)")


@dataclass(frozen=True)
class ConvertArguments:
    """The command line as values."""

    source: str
    target: Path
    overrides: tuple[str, ...] = ()  # that say where components come from, and what no file tells
    precision: str | None = None  # as safetensors names it; None keeps each tensor's own
    shard_bytes: int = 10 * 10**9

    @property
    def single(self) -> bool:
        """Tells whether the target is one file."""
        return self.target.suffix == _FILES[0]

    @property
    def composed(self) -> list[str]:
        """The overrides of the configuration of the model."""
        own = [] if any(each.startswith("model=") for each in self.overrides) else ["model=auto"]
        return [*own, f"model.source={self.source}", *self.overrides]


def parse_convert_arguments(arguments: Sequence[str]) -> ConvertArguments:
    """Parses the words after `diffuse convert`.

    Raises:
        ConfigError: an option does not exist or has no value, the source or target is not named, or the target exists.
    """
    words: list[str] = []
    overrides: list[str] = []
    values: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option in _OPTIONS:
            values[option] = value if equals else next(rest, "")
        elif argument.startswith("-"):
            near = get_close_matches(option, _OPTIONS, 1)
            raise ConfigError(f"{argument}: there is no such option{f'; did you mean {near[0]}?' if near else ' here'}")
        elif equals and len(words) == 2:
            if option == "model.source":
                raise ConfigError(f"{argument}: SRC says it already; leave it out")
            if option == SAID_PREDICTION and value not in PREDICTIONS:
                raise ConfigError(f"{argument}: should be {' or '.join(PREDICTIONS)}")
            if not _TAKEN.fullmatch(option):
                raise ConfigError(f"{argument}: changes no file; convert takes model.* and scheduler.prediction_type")
            overrides.append(argument)
        else:
            words.append(argument)
    if len(words) != 2:
        raise ConfigError("diffuse convert SRC DST: name a checkpoint, and the folder or .safetensors file to make")
    target = user_path(words[1], "DST")
    if os.path.lexists(target):
        raise ConfigError(f"{target}: exists already and is not overwritten; name another, or remove it")
    if target.suffix.lower() in _FILES and target.suffix != _FILES[0]:
        raise ConfigError(f"{target}: is no kind of file that is written; name a folder, or a file DST.safetensors")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: there is no such folder; make it first")
    precision = values.get("--precision")
    if precision is not None and precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision}: should be {', '.join(PRECISIONS)}")
    stored = None if precision is None else PRECISIONS[precision]
    found = ConvertArguments(words[0], target, tuple(overrides), stored)
    if "--shard-size" not in values:
        return found
    if found.single:
        raise ConfigError(f"--shard-size: {target.name} is one file; leave it out, or name a folder")
    return ConvertArguments(words[0], target, tuple(overrides), stored, _size(values["--shard-size"]))


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(KB|MB|GB)", text.upper())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--shard-size {text}: should be a size, such as 5GB or 500MB")
    return max(1, int(float(match[1]) * _UNITS[match[2]]))
