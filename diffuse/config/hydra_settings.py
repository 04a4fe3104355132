"""Hydra's own settings that have no place here: each is refused by name, with what to write instead.

A run's files go where `output.dir` says, and a job's folder is named by what the job is: Hydra's folders would be
empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from diffuse.config.bases import uses_hydra_values
from diffuse.config.groups import conf_dir, load_yaml
from diffuse.config.own import OwnConfig, own_config
from diffuse.config.own_files import OwnFile
from diffuse.config.root import part_kinds
from diffuse.errors import ConfigError

_INSTEAD = {
    "hydra.run.dir": "pictures go where output.dir says; write output.dir={}",
    "hydra.sweep.dir": "a sweep goes where output.dir says; write output.dir={}",
    "hydra.sweep.subdir": "a job's folder is named by its values; leave it out, and write output.dir=FOLDER for all",
    "hydra.job.chdir": "a run stays in the folder that it is started in; leave it out, and write output.dir=FOLDER",
}
_OF_SWEEPS = re.compile(r"hydra[./](launcher|sweeper)\b.*")
_NO_LOGS = {"override hydra/job_logging": "none", "override hydra/hydra_logging": "none"}
_FOLDERS_ALONE = {"job": {"chdir": False}, "output_subdir": None, "run": None, "sweep": None}
_SIGNS = "+~"
# Parts with values by name whose classes Hydra does not declare.
_PARTS = (
    "hydra",
    "hydra.sweeper",
    "hydra.launcher",
    "hydra.sweeper.params",
    "hydra.sweeper.sampler",
    "hydra.launcher.ray",
)
_OF_HYDRA = re.compile(r"hydra\.(overrides|runtime)\b.*")  # what Hydra says of a run, in which nothing is for the user
_PLUGIN = re.compile(r"hydra\.(launcher|sweeper)\._target_")
_OTHER_PART = re.compile(r"\$\{hydra\.[\w.]+\}")


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


def check_hydra_part(override: str) -> None:
    """Checks that an override of Hydra's own gives values by name where they should be, and a list where one should.

    Hydra reads these before anything can check what it has composed.

    Raises:
        ConfigError: it does not.
    """
    key, equals, text = override.lstrip(_SIGNS).partition("=")
    if not equals or not f"{key}.".startswith("hydra."):
        return
    try:
        value = OverridesParser.create().parse_override(f"+{key}={text}").value()
    except HydraException:  # which the composing says
        return
    for name, item in _walk(key, value):
        if fault := _fault(name, item):
            raise ConfigError(f"{override}: {fault}")


def check_hydra_parts_of(files: Sequence[OwnFile]) -> None:
    """Checks the same of the user's own files.

    Raises:
        ConfigError: a file has something else; the message says in which line.
    """
    for file in files:
        for name, node, line in file.entries():
            if f"{name}.".startswith("hydra.") and (fault := _fault(name, _value(node))):
                given = f"{name}={node.value}" if isinstance(node, yaml.ScalarNode) else name
                raise ConfigError(f"{file.path}:{line}: {given}: {fault}")


def _value(node: yaml.Node) -> Any:
    """Returns a value of the kind that a node of YAML has."""
    if isinstance(node, yaml.MappingNode):
        return {}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    kind = node.tag.rpartition(":")[2]
    return None if kind == "null" else kind == "bool" or (node.value if kind == "str" else 0)


def _walk(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield key, value
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from _walk(f"{key}.{name}", item)


def _fault(key: str, value: Any) -> str:
    """Returns what is wrong with the kind of a value of Hydra's own."""
    if _OF_HYDRA.fullmatch(key):
        return "is what Hydra itself says of a run; leave it out"
    if key == "hydra.verbose":
        items = value if isinstance(value, list) else [value]
        is_name = all(isinstance(item, str) and "${" not in item for item in items)
        return "" if isinstance(value, bool) or is_name else "should be true, false, or the names of loggers"
    if match := _PLUGIN.fullmatch(key):
        is_plugin = str(value).startswith("hydra_plugins.") or ".core_plugins." in str(value)
        return "" if is_plugin else f"should be a plugin of Hydra's; choose one by hydra/{match[1]}=NAME"
    kind = _kind(key)
    if kind is dict and not isinstance(value, dict):
        is_other = isinstance(value, str) and _OTHER_PART.fullmatch(value)
        is_none = value is None and key == "hydra.sweeper.params"
        return "" if is_other or is_none else f"it has fields of its own; set one of them, as {key}.NAME=VALUE"
    if kind is list and not isinstance(value, list):
        return f"should be a list; write {key}=[VALUE,VALUE]"
    return ""


@cache
def _kind(key: str) -> type | None:
    """Returns dict for a part with fields or values by name, list for a list, and None for everything else."""
    if key in _PARTS:
        return dict
    part: Any = HydraConf
    for name in key.split(".")[1:]:
        kinds = part_kinds(part) if isinstance(part, type) and is_dataclass(part) else {}
        if name not in kinds:
            return None
        part = kinds[name][0]
    return list if issubclass(part, list) else None if issubclass(part, Enum) else dict


def may_set_hydra(overrides: Sequence[str]) -> bool:
    """Returns whether overrides, or files that they choose, may set something of Hydra's."""
    if own_config().files:
        return True
    pairs = [override.lstrip(_SIGNS).partition("=") for override in overrides]
    experiments = [value for name, _, value in pairs if name == "experiment"]
    return any(map(is_hydras, overrides)) or any(map(_experiment_has_hydra, experiments))


def is_hydras(override: str) -> bool:
    """Returns whether an override is of something of Hydra's own."""
    return override.lstrip(_SIGNS).startswith("hydra")


def _experiment_has_hydra(name: str) -> bool:
    file = conf_dir() / "experiment" / f"{name}.yaml"
    return name not in ("", "null") and (not file.is_file() or "hydra" in file.read_text(encoding="utf-8"))


def needs_hydra(overrides: Sequence[str]) -> bool:
    """Returns whether a single run needs what Hydra gives beside its configuration: a mode, callbacks, values.

    Args:
        overrides: in Hydra's grammar.
    """
    return may_set_hydra(overrides) or uses_hydra_values(overrides) or has_own_hydra()


def has_own_hydra() -> bool:
    """Returns whether configuration files, the user's own or `conf/config.yaml`, may ask Hydra for more than folders:
    callbacks, a log, variables.
    """
    return own_config() != OwnConfig() or _asks_hydra(conf_dir())


@cache
def _asks_hydra(folder: Path) -> bool:
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    entries = [entry for each in config["defaults"] if isinstance(each, dict) for entry in each.items()]
    parts = {name: value for name, value in entries if "hydra/" in name and not name.endswith(("launcher", "sweeper"))}
    return parts != _NO_LOGS or {**config["hydra"], "run": None, "sweep": None} != _FOLDERS_ALONE


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
