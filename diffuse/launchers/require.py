"""Packages that only some sweeps need."""

from __future__ import annotations

import importlib.util

from diffuse.errors import ConfigError


def require(package: str, *, extra: str, wanted: str) -> None:
    """Raises ConfigError where `package` is not installed, which `wanted` needs and the extra `extra` brings."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{wanted}: needs {package}, which is not installed; pip install 'diffuse[{extra}]'")
