"""Packages that only some sweeps need."""

from __future__ import annotations

import importlib.util
from contextlib import suppress

from diffuse.errors import ConfigError


def require(package: str, *, extra: str, wanted: str) -> None:
    """Raises ConfigError where `package` is not installed, which `wanted` needs and the extra `extra` brings."""
    with suppress(ModuleNotFoundError):  # the package that it is a part of
        if importlib.util.find_spec(package) is not None:
            return
    name = package.rpartition(".")[2].replace("_", "-")
    raise ConfigError(f"{wanted}: needs {name}, which is not installed; pip install 'diffuse[{extra}]'")
