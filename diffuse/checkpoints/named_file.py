"""Finds one small file that a configuration names: on this machine, or in a repository on the hub.

LoRA files and embeddings are named so: `FILE`, the `FOLDER` that it is in, or on the hub `OWNER/NAME/FILE`, also at a
commit, tag or branch as `OWNER/NAME@REVISION/FILE`. `OWNER/NAME` stands for the file in it that has one of the usual
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.hub.errors import hub_errors
from diffuse.checkpoints.locate import locate_checkpoints
from diffuse.checkpoints.safetensors_file import unreadable
from diffuse.checkpoints.single_file import SingleFile
from diffuse.checkpoints.source import Source
from diffuse.config.file_lists import FileList
from diffuse.errors import CheckpointError, NotFetched
from diffuse.paths import user_path
from diffuse.schema import Download

_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>(?:[^/\\]+/)*[^/\\]+))?")


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a configuration names.

    Args:
        suffixes: of its files, the first the best.
        names: that programs give a file which is alone in its folder or repository.
        refused: what is said of a file with another suffix.
    """

    suffixes: tuple[str, ...]
    names: tuple[str, ...]
    refused: str

    def choose(self, names: Iterable[str]) -> str | None:
        """Returns the file that a folder with these files stands for; None where none or several may be meant."""
        files = sorted(name for name in names if Path(name).suffix.lower() in self.suffixes)
        usual = next((name for name in self.names if name in files), None)
        best = [name for name in files if Path(name).suffix.lower() == self.suffixes[0]]
        return usual or (best[0] if len(best) == 1 else files[0] if len(files) == 1 else None)


@dataclass(frozen=True)
class NamedFile:
    """A file on this machine, and the commit of the hub that it is of, if it is of any."""

    path: Path
    revision: str | None = None


def locate_file(source: str, setting: str, kind: FileKind, consent: Download, command: object) -> NamedFile:
    """Returns the file that a source names. What is on the hub and not here is fetched with the user's consent.

    Args:
        setting: the field that names it, such as `lora.0.source`.
        command: its text is the command that fetches it beforehand; for messages.

    Raises:
        ConfigError: there is no consent.
        CheckpointError: there is no such file, or it is of another format.
    """
    path = local_file(source, setting, kind)
    if path is not None:
        return NamedFile(path)
    (found,) = locate_checkpoints([hub_file_source(source, setting, kind, consent)], consent, command)
    assert isinstance(found, SingleFile)
    return NamedFile(found.file, found.revision)


def locate_listed(
    cfg: DictConfig | Mapping[str, Any], files: FileList, kind: FileKind
) -> Iterator[tuple[Any, str, NamedFile]]:
    """Yields each setting of a field that lists files, the name of its place such as `lora.0`, and the file.

    Raises:
        ConfigError: a setting is wrong, or there is no consent.
        CheckpointError: as `locate_file`.
    """
    for index, setting in enumerate(files.read_config(cfg)):
        place, command = f"{files.name}.{index}", download_command(cfg, files.name, setting.source)
        yield setting, place, locate_file(setting.source, f"{place}.source", kind, cfg["model"]["download"], command)


def local_file(source: str, setting: str, kind: FileKind) -> Path | None:
    """Returns the file of this machine that a source names; None where it names one on the hub.

    Raises:
        CheckpointError: there is no such file, or it is of another format.
    """
    path = user_path(source, setting)
    try:
        if path.is_dir():
            return _file_in(path, source, setting, kind)
        is_file = path.is_file()
    except OSError as error:
        raise unreadable(source, error) from None
    if is_file:
        _check_suffix(path.name, source, setting, kind)
        return path
    if _hub_name(source, kind) is None:
        raise CheckpointError(
            f"{setting}={source}: there is no such file; copy it there, or give a {' or '.join(kind.suffixes)} file of "
            "this machine, or one on the hub as OWNER/NAME/FILE"
        )
    return None


def hub_file_source(source: str, setting: str, kind: FileKind, consent: Download) -> Source:
    """Returns the file on the hub that a source names.

    Raises:
        ConfigError: the hub would have to be asked, and may not be.
        CheckpointError: it is of another format, or the repository has no such file.
    """
    match = _hub_name(source, kind)
    assert match is not None
    repository, revision, file = match["repository"], match["revision"], match["file"]
    if file is None:
        file = _usual_file(repository, revision, source, setting, kind, consent)
    _check_suffix(file, source, setting, kind)
    return Source(f"{repository}/{file}", revision, setting=setting.removesuffix(".source"))


def at_revision(source: str, revision: str | None) -> str:
    """Returns the name of a file on the hub at a commit; that of another file as it is."""
    match = _HUB.fullmatch(source)
    if match is None or revision is None:
        return source
    return f"{match['repository']}@{revision}" + (f"/{match['file']}" if match["file"] else "")


def _hub_name(source: str, kind: FileKind) -> re.Match[str] | None:
    """Returns the parts of the name of a file on the hub; None for another name."""
    if source.startswith(("/", ".", "~")) or Path(source).parent.is_dir():
        return None
    match = _HUB.fullmatch(source)
    if match is None or ".." in source or "--" in match["repository"]:
        return None
    is_file_name = match["file"] is None and Path(match["repository"]).suffix.lower() in kind.suffixes
    return None if is_file_name else match


def download_command(cfg: DictConfig | Mapping[str, Any], name: str, value: str) -> str:
    """Returns the `diffuse download` command that fetches the files of a field; for messages."""
    model = cfg["model"]
    own = f" model.source={model['source']}" if model["name"] == "auto" else ""
    return f"diffuse download model={model['name']}{own} '{name}={value}'"


def _usual_file(
    repository: str, revision: str | None, source: str, setting: str, kind: FileKind, consent: Download
) -> str:
    """Returns the file that a repository stands for; the hub is asked where the cache does not tell."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    for name in kind.names:
        if isinstance(try_to_load_from_cache(repository, name, revision=revision), str):
            return name
    if consent is Download.never:
        raise NotFetched(
            f"{setting}={source}: is not here, and model.download=never; set it to yes, or give a file of this machine"
        )
    with hub_errors(repository, revision, setting.removesuffix(".source")):
        info = HfApi().model_info(repository, revision=revision)
    files = [entry.rfilename for entry in info.siblings or [] if "/" not in entry.rfilename]
    chosen = kind.choose(files)
    if chosen is None:
        own = [name for name in files if Path(name).suffix.lower() in kind.suffixes]
        raise CheckpointError(
            f"{setting}={source}: the repository has {_some(own, kind)}; name one, as {repository}/FILE"
        )
    return chosen


def _check_suffix(name: str, source: str, setting: str, kind: FileKind) -> None:
    if Path(name).suffix.lower() not in kind.suffixes:
        raise CheckpointError(f"{setting}={source}: {kind.refused}")


def _file_in(folder: Path, source: str, setting: str, kind: FileKind) -> Path:
    names = [each.name for each in folder.iterdir()]
    chosen = kind.choose(names)
    if chosen is None:
        own = sorted(name for name in names if Path(name).suffix.lower() in kind.suffixes)
        raise CheckpointError(f"{setting}={source}: is a folder that has {_some(own, kind)}; give one file")
    return folder / chosen


def _some(files: list[str], kind: FileKind) -> str:
    return ", ".join(files[:5]) if files else f"no {kind.suffixes[0]} file"
