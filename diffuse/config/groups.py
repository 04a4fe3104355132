"""Reads the folder `conf/`: its groups, their options, and the names of all fields. No torch.

Importing this module registers with Hydra and OmegaConf everything that composing `conf/` needs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.config.bases import Bases
from diffuse.config.own import OwnConfig, own_config, use_own_config, with_own_places
from diffuse.config.own_files import read_own_files
from diffuse.config.root import Config, check_parts
from diffuse.config.turns import TurnLock
from diffuse.errors import ConfigError
from diffuse.schema import (
    HardwareConfig,
    MemoryProfileConfig,
    ModelConfig,
    RefinerConfig,
    TextBackendConfig,
    TrackingConfig,
)

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_NAME = "config"
TINY = PACKAGE / "tiny" / "checkpoint"
SHIPPED = {"tiny": TINY, "tiny_video": PACKAGE / "tiny" / "video_checkpoint"}  # in the package, by preset

_CLASSES: dict[str, type[Any]] = {
    "model": ModelConfig,
    "refiner": RefinerConfig,
    "memory_profile": MemoryProfileConfig,
    "hardware": HardwareConfig,
    "text_backend": TextBackendConfig,
    "tracking": TrackingConfig,
}
GROUPS = (*_CLASSES, "scheduler", "experiment")

composing = TurnLock()  # held by whoever composes: Hydra keeps its state in globals, one for all threads

Plugins.instance()  # loads the plugins
ConfigStore.instance().store(name="schema", node=Config)
# Checkpoints that ship are found beside the code, wherever that is installed.
OmegaConf.register_new_resolver("diffuse_tiny", lambda preset="tiny": str(SHIPPED[preset]), replace=True)
# A preset's commit is that of its own source; another source has it only where model.revision says so.
OmegaConf.register_new_resolver(
    "diffuse_pin", lambda source, preset, commit: commit if source == preset else None, replace=True
)


def conf_dir() -> Path:
    """Returns the folder of YAML files: inside the installed package, or beside it in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if (packaged / f"{CONFIG_NAME}.yaml").is_file() else PACKAGE.parent / "conf"


@contextmanager
def without_nodes_of_plugins() -> Iterator[None]:
    """Hides the launchers and sweepers that plugins of Hydra have stored and `conf/hydra` has too.

    Hydra would validate those files against the plugins' classes, which have fewer fields. `ConfigStore` has no public
    method to remove a node: `ConfigStore.repo`, as in Hydra 1.3.
    """
    stored = ConfigStore.instance().repo["hydra"]
    hidden = {}
    for group in ("launcher", "sweeper"):
        for file in (conf_dir() / "hydra" / group).iterdir():
            if file.name in stored[group]:
                hidden[group, file.name] = stored[group].pop(file.name)
    try:
        yield
    finally:
        for (group, name), node in hidden.items():
            stored[group][name] = node


def group_options(group: str) -> list[str]:
    """Returns the names of a group's options, the user's own among them, sorted."""
    folders = (conf_dir(), *own_config().folders)
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def own_groups() -> list[str]:
    """Returns the names of groups that only the user's own folders have, sorted."""
    places = [place for folder in own_config().folders if folder.is_dir() for place in folder.iterdir()]
    return sorted({place.name for place in places if place.is_dir() and place.name not in (*GROUPS, "hydra")})


@cache
def sampler_options() -> dict[str, list[str]]:
    """Returns the samplers of the package that have each option, by the option's name."""
    samplers: dict[str, list[str]] = {}
    for file in sorted((conf_dir() / "scheduler").glob("*.yaml")):
        for name in cast(DictConfig, OmegaConf.load(file)):
            samplers.setdefault(str(name), []).append(file.stem)
    return {name: each for name, each in samplers.items() if name not in ("_target_", "name", "defaults")}


class LoadedGroup(dict[str, Any]):
    """The options of a group by name.

    One of the user's that has a mistake is left out, but its name is known, and choosing it raises the error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mistakes: dict[str, ConfigError] = {}

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.mistakes

    def __missing__(self, name: str) -> Any:
        raise self.mistakes.get(name) or KeyError(name)


def load_group(group: str) -> LoadedGroup:
    """Returns each option of a group as the group's dataclass, such as MemoryProfileConfig for `memory_profile`.

    `model=auto` is left out, which stands for the others.
    """
    loaded = LoadedGroup()
    for name in group_options(group):
        file = conf_dir() / group / f"{name}.yaml"
        if not file.is_file():
            try:
                loaded[name] = _load_own_option(group, name)
            except ConfigError as error:  # of no concern to a command that does not choose it
                loaded.mistakes[name] = error
            continue
        option = _load_shipped_option(group, file)
        if not OmegaConf.is_missing(option, "_target_"):
            loaded[name] = OmegaConf.to_object(option)
    return loaded


@cache  # every job of a sweep asks for all of them
def _load_shipped_option(group: str, file: Path) -> DictConfig:
    raw = cast(DictConfig, OmegaConf.load(file))
    raw.pop("defaults", None)
    return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(_CLASSES[group]), raw))


def _load_own_option(group: str, name: str) -> Any:
    """Returns an option of the user's as the group's dataclass, with its defaults, and named as its file is.

    Raises:
        ConfigError: its file has a mistake, or one of its defaults; the message names the file.
    """
    from diffuse.config.checks import check_request_defaults
    from diffuse.config.mistakes import explain_errors  # which need this module

    own = own_config()
    choice = f"{group}={name}"
    read = read_own_files(own.folders, None, [choice], conf_dir(), GROUPS)
    # The command's own overrides do not hold here, and so hide none of the file's mistakes.
    with use_own_config(replace(own, names=frozenset(), files={**own.files, **read})):
        try:
            with explain_errors():
                cfg = compose_quoted([choice])
                cfg[group].name = name
                if group == "model":
                    check_request_defaults(cfg)
                return OmegaConf.to_object(cfg[group])
        except ConfigError as error:
            if any(str(error).startswith(str(file.path)) for file in read.values()):
                raise
            raise ConfigError(f"{read[choice.replace('=', '/')].path}: {error}") from error


def load_yaml(name: str) -> DictConfig:
    """Returns `conf/NAME.yaml` as it is written, not composed."""
    return cast(DictConfig, OmegaConf.load(conf_dir() / f"{name}.yaml"))


def compose_quoted(overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    """Composes `conf/` with overrides in Hydra's own grammar; with Hydra's settings under `hydra`, if `hydra`.

    Works inside a running job of Hydra too, and in several threads. Raises what Hydra and OmegaConf raise, and what
    `check_parts` raises.
    """
    cfg = compose_unchecked(overrides, hydra)
    check_parts(cfg)
    return cfg


def compose_unchecked(overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    """Composes as `compose_quoted`, for who calls `check_parts` later."""
    own = own_config()
    cfg = None if hydra or own != OwnConfig() else _with_values(overrides)
    return _compose(with_own_places(overrides), own.name, hydra) if cfg is None else cfg


def _compose(overrides: Sequence[str], name: str | None = None, hydra: bool = False) -> DictConfig:
    with _own_hydra(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name or CONFIG_NAME, overrides=list(overrides), return_hydra_config=hydra)


def _with_values(overrides: Sequence[str]) -> DictConfig | None:
    """Composes the package's own configuration where options are chosen and plain values set; None where there is more.

    Whatever is wrong is left to Hydra to say.
    """
    try:
        with composing:
            cfg = _bases.with_values(overrides, _compose)
        if cfg is not None:
            OmegaConf.clear_cache(cfg)  # of the time at which the base was composed
            OmegaConf.select(cfg, "output.dir")  # keeps that of now
        return cfg
    except (HydraException, OmegaConfBaseException):
        return None


def _is_choice(override: Override) -> bool:
    key = override.key_or_group
    return key in GROUPS or "/" in key or key.partition(".")[0] == "hydra"


_bases = Bases(_is_choice)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Gives the block a state of Hydra of its own, one thread at a time.

    An application around us that uses Hydra finds its own again: GlobalHydra, the name of its job, its `version_base`,
    and the launchers and sweepers of its plugins.
    """
    with composing:
        outer, job, version = GlobalHydra.instance(), JobRuntime.instance(), VersionBase.instance()
        job_values, base = copy.deepcopy(job.conf), version.getbase()
        inner = copy.copy(outer)
        inner.clear()
        GlobalHydra.set_instance(inner)
        try:
            with without_nodes_of_plugins():
                yield
        finally:
            GlobalHydra.set_instance(outer)
            job.conf = job_values
            version.version_base = base


@cache
def default_values() -> dict[str, Any]:
    """Returns the values of the package's own configuration, without overrides and with interpolations."""
    with use_own_config(OwnConfig()):
        cfg = compose_quoted([])
    profile = OmegaConf.to_container(cfg.memory_profile, resolve=True)  # `auto` says by a resolver what it leaves open
    return {**cast(dict[str, Any], OmegaConf.to_container(cfg)), "memory_profile": profile}


@cache
def known_keys() -> tuple[str, ...]:
    """Returns the dotted name of every field of the default configuration, and of the groups themselves."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for name in node if isinstance(node, dict) else ():
            yield prefix + name
            yield from walk(node[name], f"{prefix}{name}.")

    return ("experiment", *walk(default_values(), ""))
