"""Composes the configuration from `conf/` and overrides, or from the data of a record, and resolves it. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from diffuse.config.groups import CONFIG_NAME, GROUPS, compose_quoted, composing, conf_dir
from diffuse.config.hydra_settings import check_hydra_parts_of
from diffuse.config.interpolations import explain_interpolation
from diffuse.config.mistakes import explain_errors, own_place, plain_message, suggestion
from diffuse.config.own import SEARCHPATH, OwnConfig, existing_folder, folder_of, read_searchpath, use_own_config
from diffuse.config.own_files import OwnFile, check_texts_of, find_own_file, read_own_file, read_own_files
from diffuse.config.quoting import escape_text, quote_overrides
from diffuse.config.root import Config
from diffuse.errors import ConfigError

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


@contextmanager
def own_configuration(overrides: Sequence[str], folder: str | None = None, name: str | None = None) -> Iterator[None]:
    """Has the user's own configuration hold in the block: everything that is composed in it finds their files.

    Args:
        overrides: of the command, `hydra.searchpath` among them.
        folder: that of `--config-dir`.
        name: the primary configuration, of `--config-name`.

    Raises:
        ConfigError: a folder is not there, or a file of the user's that the command takes in has a mistake.
    """
    places = read_searchpath(overrides)
    if folder is None and name is None and places is None:
        yield
        return
    first = None if folder is None else existing_folder(folder, "--config-dir")
    folders = [*([] if first is None else [first]), *map(folder_of, places or ())]
    primary = None if name is None else _find_primary(name, folders)
    typed = [each for each in overrides if each.startswith(f"{SEARCHPATH}=")][-1:]
    if primary is not None and places is None:
        written, found = _searchpath_of(primary)
        folders += found
        if any(place.removeprefix("file://").startswith("~") for place in written):  # which Hydra takes as it is
            quoted = ",".join(f'"{place}"' for place in _absolute_places(written, found))
            typed = [f"{SEARCHPATH}=[{quoted}]"]
    own = OwnConfig(
        first,
        None if name is None else name.removesuffix(".yaml"),
        tuple(folders),
        tuple(quote_overrides(typed)),
        frozenset(each.partition("=")[0].lstrip("+") for each in overrides),
        read_own_files(folders, name, overrides, conf_dir(), GROUPS),
    )
    check_hydra_parts_of([*own.files.values()])
    check_texts_of([*own.files.values()])
    with use_own_config(own):
        if primary is not None:
            _check_primary(primary, own)
        yield


def _find_primary(name: str, folders: Sequence[Path]) -> OwnFile | None:
    """Returns the user's file that is the primary configuration; None where that is the package's own."""
    place, _, last = name.rpartition("/")
    if ".." in name.split("/") or name.startswith(("/", "~")):
        raise ConfigError(
            f"--config-name {name}: should be a name in the folder of --config-dir; "
            f"write --config-dir {place or '/'} --config-name {last.removesuffix('.yaml')}"
        )
    if find_own_file([conf_dir()], name) is not None:
        return None
    path = find_own_file(folders, name)
    if path is None and find_own_file([Path()], name) is not None:
        raise ConfigError(
            f"--config-name {name}: should be a name in the folder of --config-dir; "
            f"write --config-dir {place or '.'} --config-name {last.removesuffix('.yaml')}"
        )
    if path is None:
        known = sorted({each.stem for folder in folders for each in folder.glob("*.yaml")})
        near = suggestion(
            name, known, f"there are {', '.join(known)}" if known else "--config-dir DIR says where it is"
        )
        where = " or ".join(map(str, folders)) or "the package"
        raise ConfigError(f"--config-name {name}: there is no {name.removesuffix('.yaml')}.yaml in {where}{near}")
    return read_own_file(path, place, bool(place))


def _searchpath_of(primary: OwnFile) -> tuple[list[str], list[Path]]:
    """Returns the places that a primary configuration names in `hydra.searchpath`, and their folders."""
    with explain_errors():
        places = OmegaConf.select(OmegaConf.load(primary.path), SEARCHPATH) or []
    where = f"{primary.path}:{primary.line(SEARCHPATH)}: {SEARCHPATH}"
    if not isinstance(places, Sequence) or isinstance(places, str):
        raise ConfigError(f"{where}={places}: should be a list of folders")
    try:
        folders = [folder_of(str(place)) for place in places]
    except ConfigError as error:
        raise ConfigError(f"{primary.path}:{primary.line(SEARCHPATH)}: {error}") from None
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{where}: {folder}: there is no such folder")
    return [str(place) for place in places], [folder.absolute() for folder in folders]


def _absolute_places(places: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Returns places as Hydra takes them: a package as it is written, a folder without `~`."""
    pairs = zip(places, folders, strict=True)
    return [place if place.startswith("pkg://") else f"file://{folder}" for place, folder in pairs]


def _check_primary(primary: OwnFile, own: OwnConfig) -> None:
    """Raises ConfigError for a primary configuration without the package's fields."""
    cfg = None
    with suppress(ConfigError), explain_errors():  # the command composes it with its overrides, and says what is wrong
        cfg = compose_quoted([])
    if cfg is not None and any(each.name not in cfg for each in fields(Config)):
        raise ConfigError(f"{primary.path}:1: lacks the fields of diffuse; begin its defaults with `- {CONFIG_NAME}`")


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Composes the configuration that `diffuse OVERRIDES` would run; texts need no quoting.

    Raises:
        ConfigError: an override names or sets what does not exist or does not fit.
    """
    with composing, explain_errors(overrides):
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
        line = explain_interpolation(str(error))
        key = re.sub(r"\[(\d+)\]", r".\1", error.full_key or "")  # as it is typed
        where = f"{key}: " if key else ""
        is_missing = isinstance(error, MissingMandatoryValue)
        hint = "; set it, or begin the file with the defaults [OPTION, _self_], of which it is a variant"
        place = own_place(error.full_key, is_missing)
        raise ConfigError(f"{place}{where}{line}{hint if place and is_missing else ''}") from None
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
