"""Expands `glob()` in a sweep: into the files that match, or the options of a group, each of them a value. No torch."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from diffuse.config.groups import GROUPS, group_options
from diffuse.config.own import own_options
from diffuse.config.quoting import quote_value
from diffuse.errors import ConfigError
from diffuse.paths import user_path
from diffuse.schema import FILE_FIELDS

_FILES = (*FILE_FIELDS, "objective.reference")


def expand_globs(overrides: Sequence[str]) -> list[str]:
    """Returns overrides in Hydra's grammar with `choice(...)` in the place of each `glob(...)`.

    Raises:
        ConfigError: one matches nothing, or is of a field that takes neither a file nor a group's option.
    """
    parse = OverridesParser.create().parse_override
    return [_expand(parse(line), line) if "glob" in line else line for line in overrides]


def _expand(override: Override, line: str) -> str:
    value: Any = override.value()
    key = override.key_or_group
    if not isinstance(value, Glob) or key == "prompt_file":  # of which there is one
        return line
    if options := group_options(key) if key in GROUPS else own_options(key):
        names = value.filter(options)
        reason = f"matches no {key}; there are {', '.join(options)}"
    elif key in _FILES or key.endswith(".source"):
        names = [path for path in _paths(value, key) if Path(path).is_dir() == key.endswith(".source")]
        kind = "folder" if key.endswith(".source") else "file"
        reason = f"matches no {kind}; give a pattern, such as glob(FOLDER/*), of some that are there"
    else:
        raise ConfigError(f"{line}: glob() finds files and options of groups, and {key} takes neither; list its values")
    if not names:
        raise ConfigError(f"{line}: {reason}")
    return f"{override.get_key_element()}=choice({','.join(map(quote_name, names))})"


def _paths(pattern: Glob, field: str) -> list[str]:
    """Returns what there is by a pattern, sorted, as paths below the current folder where the pattern is."""
    found = {path for each in pattern.include for path in glob.glob(str(user_path(each, field)), recursive=True)}
    excluded = [str(user_path(each, field)) for each in pattern.exclude]
    return sorted(
        path for path in found if not any(fnmatch(path, each) or fnmatch(Path(path).name, each) for each in excluded)
    )


def quote_name(name: str) -> str:
    """Returns a name as somebody would type it: in quotes only where it needs them."""
    try:
        is_plain = OverridesParser.create().parse_override(f"name={name}").value() == name
    except HydraException:
        is_plain = False
    return name if is_plain else quote_value(name)
