"""Paths as people write them: `~` and `~user` stand for a home folder, wherever a path is taken."""

from __future__ import annotations

import os
from pathlib import Path

from diffuse.errors import ConfigError


def user_path(path: str | Path, setting: str = "") -> Path:
    """Returns a path that a person has written, with `~` or `~user` at its beginning replaced by the home folder.

    A shell does that only at the beginning of a word, which `output.dir=~/pictures` has not.

    Args:
        setting: how messages call it, such as `output.dir`.

    Raises:
        ConfigError: there is no such user.
    """
    text = os.path.expanduser(path)
    if text.startswith("~"):
        name = text.partition(os.sep)[0]
        label = f"{setting}={path}" if setting else str(path)
        reason = f"there is no user {name[1:]}" if name != "~" else "there is no home folder"
        raise ConfigError(f"{label}: {reason}; write the folder out, or ./{name} for a name that begins so")
    return Path(text)
