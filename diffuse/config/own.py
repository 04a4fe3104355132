"""The user's own configuration: folders of YAML files that Hydra searches after `conf/`, and a primary one of its own.

`--config-dir`, `--config-name` and `hydra.searchpath` say which. It holds for a block of code, see `use_own_config`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from diffuse.config.own_files import OwnFile
from diffuse.errors import ConfigError
from diffuse.paths import user_path

SEARCHPATH = "hydra.searchpath"
_PRIMARY = "config"  # the package's own primary configuration
_ITEM = re.compile(r'"([^"]*)"|\'([^\']*)\'|([^,"\']+)')


@dataclass(frozen=True)
class OwnConfig:
    """Folders of the user's own files, and which of these files a command takes in."""

    folder: Path | None = None
    """That of `--config-dir`."""
    name: str | None = None
    """The primary configuration of `--config-name`."""
    folders: tuple[Path, ...] = ()
    """All of them, in the order in which Hydra searches them."""
    overrides: tuple[str, ...] = ()
    """The override of `hydra.searchpath`, where there is one, or where the primary configuration writes `~` in it."""
    names: frozenset[str] = frozenset()
    """The names of all overrides, which go before what the files have."""
    files: Mapping[str, OwnFile] = field(default_factory=dict)
    """Those that are taken in, by group and name, such as `model/mine`."""


_own: ContextVar[OwnConfig] = ContextVar("own_config", default=OwnConfig())  # noqa: B039 - frozen, and its mapping is never changed


def own_config() -> OwnConfig:
    """Returns the user's own configuration that holds here; an empty one where there is none."""
    return _own.get()


def own_options(group: str) -> list[str]:
    """Returns the options of a group in the user's own folders, sorted; none where these have no such group."""
    return sorted({path.stem for folder in own_config().folders for path in (folder / group).glob("*.yaml")})


def with_own_places(overrides: Sequence[str]) -> list[str]:
    """Returns overrides in Hydra's grammar with that of `hydra.searchpath` that holds here, unless they have one."""
    has_places = any(each.startswith(f"{SEARCHPATH}=") for each in overrides)
    return [*(() if has_places else own_config().overrides), *overrides]


@contextmanager
def use_own_config(own: OwnConfig) -> Iterator[None]:
    """Has `own` hold in the block."""
    token = _own.set(own)
    try:
        yield
    finally:
        _own.reset(token)


def own_config_of(hydra: Any) -> OwnConfig:
    """Returns the user's own configuration of a job, from Hydra's part of its sweep's configuration.

    It composes what the command composed: from the same folders, and by the same primary configuration.
    """
    sources = hydra.runtime.config_sources
    folder = next((Path(each.path) for each in sources if each.provider == "command-line"), None)
    places = [f"{each.schema}://{each.path}" for each in sources if SEARCHPATH in each.provider]
    quoted = ",".join(f'"{place}"' for place in places)
    primary = hydra.job.config_name
    return OwnConfig(
        folder,
        None if primary in (None, _PRIMARY) else primary,
        (*([] if folder is None else [folder]), *map(folder_of, places)),
        (f"{SEARCHPATH}=[{quoted}]",) if places else (),
    )


class OwnSearchPath(SearchPathPlugin):
    """Tells Hydra the folder of `--config-dir`, wherever it composes."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the folder after `conf/`, as Hydra's own option does."""
        if (folder := own_config().folder) is not None:
            search_path.append("command-line", f"file://{folder}")


Plugins.instance().register(OwnSearchPath)


def read_searchpath(overrides: Sequence[str]) -> list[str] | None:
    """Returns the places that the last override of `hydra.searchpath` names, as Hydra takes them; None without one.

    A folder is made absolute, with `~` expanded.

    Raises:
        ConfigError: it is no list, or a folder or package of it does not exist.
    """
    values = [value for name, _, value in (each.partition("=") for each in overrides) if name == SEARCHPATH]
    if not values:
        return None
    text = values[-1].strip()
    if text == "null":
        return []
    if not (text.startswith("[") and text.endswith("]")):
        raise ConfigError(f"{SEARCHPATH}={text}: should be a list of folders, such as [{text or 'DIR'}]")
    items = [next(filter(None, groups), "").strip() for groups in _ITEM.findall(text[1:-1])]
    return [_place(item, SEARCHPATH) for item in items if item]


def _place(item: str, option: str) -> str:
    scheme, marks, rest = item.partition("://")
    if marks and scheme not in ("file", "pkg"):
        raise ConfigError(f"{option}: {item}: should be a folder, or pkg://PACKAGE")
    if scheme == "pkg" and marks:
        folder_of(item)
        return item
    return f"file://{existing_folder(rest if marks else item, option)}"


def existing_folder(name: str, option: str) -> Path:
    """Returns the absolute folder that an option names, with `~` expanded.

    Raises:
        ConfigError: there is none.
    """
    folder = user_path(name, option).absolute()
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "there is no such folder"
        raise ConfigError(
            f"{option}: {name}: {fault}; give one with YAML files, such as {name or 'DIR'}/model/NAME.yaml"
        )
    return folder


def folder_of(place: str) -> Path:
    """Returns the folder of a place that Hydra searches, such as `file:///home/me/conf` or `pkg://mine.conf`.

    Raises:
        ConfigError: it is a package that is not there.
    """
    scheme, marks, rest = place.partition("://")
    if scheme != "pkg":
        return user_path(rest if marks else place, SEARCHPATH)
    name = rest.replace("/", ".").strip(".")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{SEARCHPATH}: {place}: there is no such package; it needs an __init__.py, and to be installed"
        )
    return Path(next(iter(spec.submodule_search_locations)))
