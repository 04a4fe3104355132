"""A checkpoint in the diffusers layout: a folder with one folder for each component.

It lists files and reads small JSON files and the headers of safetensors. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from diffuse.checkpoints.architecture import without_notes
from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.layout import PICKLES, UNUSED, WEIGHTS, find_variants, is_component, pick_files
from diffuse.checkpoints.safetensors_file import StoredFile, header_bytes, unreadable
from diffuse.checkpoints.torch_files.torch_file import open_weights_file
from diffuse.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointFolder:
    """A whole checkpoint in a folder, or one component of it; see `checkpoint.Checkpoint`.

    Args:
        folder: on this machine.
        source: what the user asked for, a folder or a hub repository `OWNER/NAME`.
        revision: the commit on the hub, None for a folder.
        variant: the published variant of the weights to read, such as `fp16`.
        setting: what the source's fields begin with in the configuration, for messages.
        component: the only component that is taken from here.
        at_root: whether the files of `component` lie in the folder itself, and not in one below it.
        parts: component -> the checkpoint that it is taken from instead.
    """

    folder: Path
    source: str
    revision: str | None = None
    variant: str | None = None
    setting: str = "model"
    component: str | None = None
    at_root: bool = False
    parts: Mapping[str, Checkpoint] = field(default_factory=dict)

    @classmethod
    def open(
        cls, folder: Path, *, variant: str | None = None, source: str | None = None, setting: str = "model"
    ) -> CheckpointFolder:
        """Opens the checkpoint in a local folder.

        Raises:
            CheckpointError: the folder is not a checkpoint in the diffusers layout; the message says what it may be.
        """
        checkpoint = cls(folder, source or str(folder), variant=variant, setting=setting)
        index = folder / "model_index.json"
        if not index.is_file():
            try:
                problem = _explain_no_file(index) or _explain_no_index(folder)
            except OSError as error:
                raise unreadable(checkpoint.source, error) from None
            raise CheckpointError(f"{checkpoint.source}: {problem}")
        return checkpoint

    @classmethod
    def open_component(
        cls, folder: Path, component: str, *, variant: str | None = None, source: str, setting: str
    ) -> CheckpointFolder:
        """Opens one component in a local folder: below its own name, as in a whole checkpoint, or at the root.

        Raises:
            CheckpointError: it is neither here nor there.
        """
        below = (folder / component).is_dir()
        checkpoint = cls(folder, source, None, variant, setting, component, at_root=not below)
        if not below:
            try:
                names = os.listdir(folder)
            except OSError as error:
                raise unreadable(checkpoint.source, error) from None
            if not is_component(component, names):
                raise no_component(checkpoint.source, component)
        return checkpoint

    @property
    def notes(self) -> list[str]:
        """Lists what was found out about the checkpoint and could be otherwise: which weights are pickles."""
        pickled = [name for name in self.components if self.has(name) and self._pickled(name)]
        own = f"{self.source}: the weights of {', '.join(pickled)} are pickles, of which nothing was run"
        return [*([own] if pickled else []), *(note for part in self.parts.values() for note in part.notes)]

    def part(self, component: str) -> Checkpoint:
        """Returns the checkpoint that `component` is taken from: this one, or one of `parts`."""
        return self.parts.get(component, self)

    @cached_property
    def index(self) -> dict[str, Any]:
        """Is the content of `model_index.json`."""
        return self._json("model_index.json")

    @property
    def components(self) -> list[str]:
        """Lists the components that are taken from here, without those that no pipeline uses."""
        if self.component is not None:
            return [self.component]
        names = [
            name for name, entry in self.index.items() if isinstance(entry, list) and entry and entry[0] is not None
        ]
        return [name for name in names if name.isidentifier() and name not in UNUSED and name not in self.parts]

    def has(self, component: str) -> bool:
        """Tells whether the component is there. Some, such as `latent_upsampler`, are without being in the index."""
        entry = None if self.component else self.index.get(component)
        absent = isinstance(entry, list) and (not entry or entry[0] is None)
        return not absent and self.path(component).is_dir()

    def config(self, component: str) -> dict[str, Any]:
        """Reads `<component>/config.json`, or a scheduler's `scheduler_config.json`, without notes for people in it.

        Raises:
            CheckpointError: it is not there, or not a JSON object.
        """
        if not self.path(component).is_dir():
            raise self._no_folder(component)
        names = ("scheduler_config.json", "config.json") if component.startswith("scheduler") else ("config.json",)
        name = next((name for name in names if self.path(f"{component}/{name}").is_file()), names[0])
        return without_notes(self._json(f"{component}/{name}"))

    def path(self, relative: str) -> Path:
        """Returns the path of `relative` below the folder.

        Raises:
            CheckpointError: it would lead out of the folder.
        """
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or "\0" in relative or not parts.parts:
            raise CheckpointError(
                f"{self.source}: refers to {relative!r}, which is outside the checkpoint; do not use it"
            )
        if self.at_root and parts.parts[0] == self.component:
            parts = PurePosixPath(*parts.parts[1:])
        return self.folder / parts

    def display_name(self, component: str, file: str = "") -> str:
        """Returns the name of a component, or of a file of it, for messages."""
        source = self.source.rstrip("/")
        name = source if self.at_root else f"{source}/{component}"
        return f"{name}/{file}" if file else name

    def files(self, component: str) -> list[Path]:
        """Returns the paths of a component's weights, whole or in shards, in the variant or the plain one.

        Raises:
            CheckpointError: there are none, the variant is not there, a shard is missing.
        """
        where = self.display_name(component)
        if not self.path(component).is_dir():
            raise self._no_folder(component)
        first = pick_files(self._listing, component, self.variant, where, self.setting)[0]
        if first.endswith(".json"):
            shards = self._json(f"{component}/{first}").get("weight_map")
            if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
                raise CheckpointError(f"{where}/{first}: has no weight_map; copy or download it again")
            for name in shards.values():
                if "/" in name or "\\" in name:
                    raise CheckpointError(
                        f"{where}/{first}: names {name!r}, which is outside its folder; do not use it"
                    )
                if not (shard := WEIGHTS.fullmatch(name)) or f".{shard['format']}." not in first:
                    raise CheckpointError(f"{where}/{first}: names {name!r}, which is not a shard of it; refused")
            paths = [self.path(f"{component}/{name}") for name in sorted(set(shards.values()))]
        elif WEIGHTS.fullmatch(first)["shard"]:  # type: ignore[index]
            raise CheckpointError(f"{where}: {first} is a shard, and its index is missing; copy or download it again")
        else:
            paths = [self.path(f"{component}/{first}")]
        for path in paths:
            with self._reading(path):
                if not stat.S_ISREG(path.stat().st_mode):
                    kind = "a folder" if path.is_dir() else "something else"
                    raise CheckpointError(
                        f"{self._display_path(path)}: is {kind} and should be a file; copy or download it again"
                    )
        return paths

    def tensor_files(self, component: str) -> list[StoredFile]:
        """Returns the files of a component's weights, their headers checked and no weight read.

        Raises:
            CheckpointError: as `files`, or a file is damaged.
        """
        return [open_weights_file(path, self._display_path(path)) for path in self.files(component)]

    def _pickled(self, component: str) -> bool:
        return any(path.suffix != ".safetensors" for path in self._weights(component))

    def _no_folder(self, component: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: has no folder {component}; the checkpoint is incomplete or of another family of models"
        )

    @property
    def identity(self) -> str:
        """Tells checkpoints apart within a process, without reading weights.

        It consists of the source, the revision, and a SHA-256 over the settings and over the name, size, time and
        header of every weights file: a file that was replaced makes another identity.
        """
        components = sorted(name for name in self.components if self.has(name))
        digest = hashlib.sha256()
        if not self.component:
            path = self.path("model_index.json")
            with self._reading(path):
                digest.update(path.read_bytes())
        for component in components:
            for path in sorted([*self.path(component).glob("*.json"), *self.path(component).glob("*.txt")]):
                with self._reading(path):
                    digest.update(f"{component}/{path.name}\n".encode() + path.read_bytes())
            for path in self._weights(component):
                with self._reading(path):
                    header = header_bytes(path) if path.suffix == ".safetensors" else b""
                    digest.update(f"{component}/{path.name} {file_state(path)}\n".encode() + header)
        own = f"{self.source}@{self.revision or 'local'}:{digest.hexdigest()[:32]}"
        return " ".join([own, *(f"{name}={part.identity}" for name, part in sorted(self.parts.items()))])

    def digest(self, components: Iterable[str] | None = None) -> str:
        """Returns a SHA-256 of the weights' contents: over one line `sha256  component/file` for each file, sorted.

        Each of `parts` has its own digest. Every byte is read, once in a process for a file that does not change.

        Args:
            components: the components whose weights count; None for all that are taken from here.
        """
        names = self.components if components is None else components
        lines = []
        for component in sorted(names):
            for path in self._weights(component) if self.has(component) else []:
                with self._reading(path):
                    lines.append(f"{file_digest(path)}  {component}/{path.name}\n")
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    @cached_property
    def _listing(self) -> dict[str, list[str]]:
        """Maps each component's folder to its file names."""
        try:
            if self.at_root and self.component:
                return {self.component: os.listdir(self.folder)}
            folders = [entry for entry in self.folder.iterdir() if entry.is_dir() and entry.name not in UNUSED]
            return {folder.name: os.listdir(folder) for folder in folders}
        except OSError as error:
            raise unreadable(self.source, error) from None

    def _weights(self, component: str) -> list[Path]:
        """Returns `files`, or nothing for a component that has no weights, such as a tokenizer."""
        names = self._listing.get(component, [])
        return self.files(component) if any(n.endswith((".safetensors", *PICKLES)) for n in names) else []

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Raises CheckpointError where `path` cannot be read in the block."""
        try:
            yield
        except OSError as error:
            raise unreadable(self._display_path(path), error) from None

    def _display_path(self, path: Path) -> str:
        return f"{self.source.rstrip('/')}/{path.relative_to(self.folder).as_posix()}"

    def _json(self, relative: str) -> dict[str, Any]:
        path = self.path(relative)
        where = self._display_path(path)
        try:
            value = json.loads(path.read_bytes())  # in UTF-8 or what a byte-order mark says
        except FileNotFoundError:
            missing = "is a link to a file that is missing" if path.is_symlink() else "is missing"
            raise CheckpointError(f"{where}: {missing}; copy or download it again") from None
        except OSError as error:
            raise unreadable(where, error) from None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{where}: is not JSON; copy or download it again") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}: is not a JSON object; copy or download it again")
        return value


_digests: dict[tuple[str, tuple[int, ...]], str] = {}


def file_state(path: Path) -> tuple[int, ...]:
    """Returns what changes with the file's contents. The time alone would not: its clock ticks too slowly."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file. It is read once in a process, as long as it does not change."""
    key = (os.path.realpath(path), file_state(path))
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def no_component(source: str, component: str) -> CheckpointError:
    """Returns the error for a source of `component` that has none."""
    files = "tokenizer.json, or vocab.json and merges.txt," if component.startswith("tokenizer") else "config.json"
    return CheckpointError(
        f"{source}: has neither a folder {component} nor {files} of its own; give a checkpoint or a folder that is one "
        f"{component}"
    )


def _explain_no_file(path: Path) -> str:
    """Says what stands in the place of a file, and what to do about it; nothing where nothing does."""
    if path.is_dir():
        return f"its {path.name} is a folder and should be a file; copy or download it again"
    if path.is_symlink():
        return f"its {path.name} is a link to a file that is missing; copy or download it again"
    return ""


def _explain_no_index(folder: Path) -> str:
    """Says what a folder without `model_index.json` seems to be, and what to do about it."""
    names = sorted(entry.name for entry in folder.iterdir())
    if "config.json" in names and find_variants(names):
        above = " (its parent folder is one)" if (folder.resolve().parent / "model_index.json").is_file() else ""
        return f"is one component, not a checkpoint: give the folder that holds model_index.json{above}"
    for name in names:
        if (folder / name / "model_index.json").is_file():
            return f"has no model_index.json, but its folder {name} has: set model.source={folder / name}"
    single = [name for name in names if name.endswith((".safetensors", *PICKLES))]
    if single:
        return (
            f"has no model_index.json; {single[0]} looks like a single-file checkpoint: set model.source to that file"
        )
    return "has no model_index.json; give a folder in the diffusers layout"
