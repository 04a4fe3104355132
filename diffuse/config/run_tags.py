"""Checks the tags and the name that a user gives to runs, by MLflow's own rules. MLflow is not imported for it."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Mapping
from typing import Any

from diffuse.errors import ConfigError

# As MLflow 3 checks names of tags; on Windows a colon cannot be in the name of a file.
_KEY = re.compile(r"[/\w.\- ]*" if sys.platform == "win32" else r"[/\w.\- :]*")
_KEY_CHARACTERS = 250
VALUE_CHARACTERS = 8000
_NAME_CHARACTERS = 250
_SWEEP_CHARACTERS = 51  # of them, in a sweep: the space and the name of each job, see `diffuse.sweep.job`
_OWN = ("diffuse.", "mlflow.source.")
_OWN_KEYS = ("mlflow.user", "mlflow.runName", "mlflow.loggedImages")


def check_run_tags(
    tags: Mapping[str, Any], name: str | None, name_origin: str = "tracking.run_name", *, in_sweep: bool = False
) -> None:
    """Checks `tracking.tags` and the name of runs.

    Args:
        name_origin: how the user gave the name.
        in_sweep: the name stands before the name of each run.

    Raises:
        ConfigError: MLflow would refuse or cut one, or a tag is one that diffuse sets itself.
    """
    for key, value in tags.items():
        where = f"tracking.tags.{key}"
        if not key or not _KEY.fullmatch(key):
            raise ConfigError(f"{where}: MLflow takes letters, digits, spaces and / _ . - : in the name of a tag")
        normal = posixpath.normpath(key)
        if normal != key or normal == "." or normal.startswith(("..", "/")):
            raise ConfigError(f"{where}: MLflow takes no name of a tag that is not a plain path; try {_plain(normal)}")
        if len(key) > _KEY_CHARACTERS:
            raise ConfigError(f"{where[:80]}...: has {len(key)} characters; MLflow takes {_KEY_CHARACTERS} in a name")
        if key.startswith(_OWN) or key in _OWN_KEYS:
            raise ConfigError(f"{where}: diffuse sets this tag itself; choose another name")
        if isinstance(value, Mapping):
            inner = next(iter(value), "NAME")
            raise ConfigError(
                f"{where}: a dot makes tags within a tag, which MLflow has not; a name that holds a dot is written "
                f"'tracking.tags={{{key}.{inner}: VALUE}}'"
            )
        if value is None or isinstance(value, list):
            raise ConfigError(f"{where}: should be a text or a number; leave a tag without a value out")
        if len(tag_text(value)) > VALUE_CHARACTERS:
            raise ConfigError(f"{where}: is longer than the {VALUE_CHARACTERS} characters that MLflow keeps of a tag")
    if name is not None and not name.strip():
        raise ConfigError(f"{name_origin} is empty: give a name, or leave it out")
    most = _NAME_CHARACTERS - (_SWEEP_CHARACTERS if in_sweep else 0)
    if name is not None and len(name) > most:
        rest = f", and a sweep's run has a name of its own behind it; give at most {most}" if in_sweep else ""
        raise ConfigError(f"{name_origin}: has {len(name)} characters; MLflow keeps {_NAME_CHARACTERS}{rest}")


def tag_text(value: Any) -> str:
    """Returns the value of a tag as MLflow keeps it, a text, written as it is in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(path: str) -> str:
    return path.lstrip("./") or "another one"
