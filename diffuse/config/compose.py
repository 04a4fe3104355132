"""Composes the configuration from `conf/` and overrides, or from the data of a record, and resolves it. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from diffuse.config.groups import compose_quoted, composing
from diffuse.config.mistakes import explain_errors, plain_message
from diffuse.config.quoting import escape_text, quote_overrides
from diffuse.config.root import Config
from diffuse.errors import ConfigError

HYDRA_INTERPOLATION = "${hydra:"  # begins a value that Hydra gives, unless a backslash makes it a text
_HYDRA_PATH = re.compile(r"(?<!\\)(?P<backslashes>(?:\\\\)*)\$\{hydra:(?P<path>[^}]*)\}")
_NO_JOB_VALUE = (
    "a job of a sweep has no {}: it is known by its values, in whatever order; use one of those, as ${{FIELD}}"
)


class ConfigValues(dict[str, Any]):
    """Plain values by name, which are attributes too, as in a DictConfig.

    Reading one takes a hundredth of the time.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Composes the configuration that `diffuse OVERRIDES` would run; texts need no quoting.

    Raises:
        ConfigError: an override names or sets what does not exist or does not fit.
    """
    with composing(), explain_errors(overrides):
        return compose_quoted(quote_overrides(overrides))


def compose_with_hydra(overrides: Sequence[str]) -> DictConfig:
    """Composes overrides in Hydra's own grammar, with Hydra's settings under `hydra`.

    Raises:
        ConfigError: as `resolve_hydra_values`.
    """
    cfg = compose_quoted(overrides, hydra=True)
    resolve_hydra_values(cfg)
    return cfg


def resolve_hydra_values(cfg: DictConfig) -> None:
    """Replaces each `${hydra:...}` outside Hydra's own part by its value for this job, in place.

    Raises:
        ConfigError: a sweep's job has no such value, such as its number, which would change with the order.
    """
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    for name, value in list(_interpolations({key: part for key, part in values.items() if key != "hydra"})):
        for match in _HYDRA_PATH.finditer(value):
            if OmegaConf.select(cfg.hydra, match["path"]) is None:
                raise ConfigError(f"{name}={value}: {_NO_JOB_VALUE.format(match['path'])}")
        OmegaConf.update(cfg, name, _HYDRA_PATH.sub(r"\g<backslashes>${hydra.\g<path>}", value))
        OmegaConf.update(cfg, name, OmegaConf.select(cfg, name))


def _interpolations(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted names of values in which `${hydra:...}` stands, and the values."""
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from _interpolations(value, f"{prefix}{name}.")
        elif isinstance(value, str) and _HYDRA_PATH.search(value):
            yield f"{prefix}{name}", value


def resolve_config(cfg: DictConfig) -> ConfigValues:
    """Returns the configuration, without Hydra's own part, as plain values: each interpolation is replaced by what it
    stands for, each enumeration by its name.

    Raises:
        ConfigError: a value is missing, or an interpolation leads nowhere.
    """
    if "hydra" in cfg:  # whose interpolations hold inside a job only
        cfg = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0].rstrip(".")
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{line}") from None
    return cast(ConfigValues, _by_attribute(values))


def _by_attribute(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return ConfigValues({name: _by_attribute(item) for name, item in value.items()})


def config_from_data(values: Mapping[str, Any]) -> DictConfig:
    """Builds a configuration from the values of a record, with the schema's defaults for fields that it does not have.

    Each text in it is that text, whatever OmegaConf would make of `${...}`: nothing of it is looked up, here or in the
    environment.

    Raises:
        ConfigError: a name does not exist, or a value is of another type.
    """
    try:
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(_escaped(values))))
    except OmegaConfBaseException as error:
        where = error.full_key or ""
        if isinstance(error, ConfigKeyError):
            raise ConfigError(f"{where}: there is no such field") from None
        raise ConfigError(f"{where}: {plain_message(str(error))}") from None


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape_text(value) if isinstance(value, str) else value
