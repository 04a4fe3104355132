"""Hydra's own settings that have no place here: each is refused by name, with what to write instead.

A run's files go where `output.dir` says, and a job's folder is named by what the job is: Hydra's folders would be
empty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from diffuse.config.groups import load_yaml
from diffuse.config.own import own_config
from diffuse.errors import ConfigError

_INSTEAD = {
    "hydra.run.dir": "pictures go where output.dir says; write output.dir={}",
    "hydra.sweep.dir": "a sweep goes where output.dir says; write output.dir={}",
    "hydra.sweep.subdir": "a job's folder is named by its values; leave it out, and write output.dir=FOLDER for all",
    "hydra.job.chdir": "a run stays in the folder that it is started in; leave it out, and write output.dir=FOLDER",
}
_OF_SWEEPS = re.compile(r"hydra[./](launcher|sweeper)\b.*")
_HAS_HYDRA = ("hydra", "experiment=")  # overrides that may set something of Hydra's
_SIGNS = "+~"


def check_hydra_overrides(overrides: Sequence[str], *, sweep: bool) -> None:
    """Checks what a command line sets of Hydra's own.

    Args:
        overrides: as the user typed them.
        sweep: whether they are a sweep.

    Raises:
        ConfigError: a setting has no place here, or is a sweep's and there is none.
    """
    for override in overrides:
        key, _, value = override.lstrip(_SIGNS).partition("=")
        if not sweep and _OF_SWEEPS.fullmatch(key):
            raise ConfigError(f"{override}: is for a sweep, and this is a single run; add -m, or leave it out")
        if sweep and key == "hydra.mode" and value == "RUN":
            raise ConfigError(f"{override}: is a single run, and -m a sweep; leave one of them out")
        if key in _INSTEAD:
            _check_setting(key, value.strip("'\""))


def may_set_hydra(overrides: Sequence[str]) -> bool:
    """Returns whether overrides, or files that they choose, may set something of Hydra's."""
    return bool(own_config().files) or any(override.lstrip(_SIGNS).startswith(_HAS_HYDRA) for override in overrides)


def check_hydra_config(hydra: Any) -> None:
    """Checks Hydra's settings of a composed configuration, which a file may have set.

    Raises:
        ConfigError: a setting has no place here.
    """
    for key in _INSTEAD:
        _, parent, name = key.split(".")
        _check_setting(key, OmegaConf.to_container(hydra[parent], resolve=False)[name])  # type: ignore[index,call-overload]


def _check_setting(key: str, value: Any) -> None:
    text = _text(value)
    if text not in ("null", _text(_shipped(key))):
        raise ConfigError(f"{key}={text}: {_INSTEAD[key].format(text)}")


@cache
def _shipped(key: str) -> Any:
    hydra = OmegaConf.to_container(load_yaml("config").hydra, resolve=False)
    for name in key.split(".")[1:]:
        hydra = hydra[name]  # type: ignore[index,call-overload]
    return hydra


def _text(value: Any) -> str:
    """Returns a value as an override has it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
