"""A checkpoint in the diffusers layout: which files it has, what they declare, and which checkpoint it is.

Nothing here needs torch: files are listed, small JSON files and the headers of safetensors are read, weights are not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from diffuse.checkpoints.layout import PICKLES, UNUSED, WEIGHTS, is_component, pick, variants
from diffuse.errors import CheckpointError


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor. `start` counts bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(path: Path, where: str | None = None) -> dict[str, TensorInfo]:
    """Published key -> tensor, from the header of a safetensors file, which is validated as a whole.

    Raises:
        CheckpointError: the file cannot be read, is cut short, or is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    where = where or str(path)
    try:
        with safe_open(path, framework="numpy"):  # checks that header and data fit together, reads no tensor
            pass
        raw = _raw_header(path)
    except OSError as error:
        raise _unreadable(where, error) from None
    except SafetensorError as error:
        raise CheckpointError(f"{where}: {_why_damaged(path, str(error))}") from None
    entries = json.loads(raw)
    entries.pop("__metadata__", None)
    data = 8 + len(raw)
    return {
        key: TensorInfo(
            entry["dtype"],
            tuple(entry["shape"]),
            data + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for key, entry in entries.items()
    }


def _raw_header(path: Path) -> bytes:
    with path.open("rb") as file:
        # The limit is the format's own; only a damaged file can claim more.
        return file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000))


def _why_damaged(path: Path, message: str) -> str:
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "the file is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the weights; run 'git lfs pull' in the checkpoint's folder"
    if "not fully covered" in message or "IncompleteBuffer" in message:
        return "the file is cut short; copy or download it again"
    reason = message.removeprefix("Error while deserializing header: ").splitlines()[0]
    return f"is not a readable safetensors file ({reason}); copy or download it again"


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the diffusers layout, and where it came from; or one component of such, which may be all there is.

    `source` is what the user asked for, a folder or `OWNER/NAME`; `revision` the commit on the hub, None for a folder;
    `variant` the published file variant that is wanted, such as fp16.
    """

    folder: Path
    source: str
    revision: str | None = None
    variant: str | None = None
    setting: str = "model"  # what its fields begin with in the configuration, for messages
    component: str | None = None  # the only one that is taken from here
    at_root: bool = False  # whether its files lie in the folder itself, and not in one below that has its name
    elsewhere: Mapping[str, Checkpoint] = field(default_factory=dict)  # component -> where it is taken from instead

    @classmethod
    def open(
        cls, folder: Path, *, variant: str | None = None, source: str | None = None, setting: str = "model"
    ) -> Checkpoint:
        """The checkpoint in a local folder.

        Raises:
            CheckpointError: the folder is not a checkpoint in the diffusers layout; the message says what it may be.
        """
        checkpoint = cls(folder, source or str(folder), variant=variant, setting=setting)
        if not (folder / "model_index.json").is_file():
            try:
                seems = _what_else(folder)
            except OSError as error:
                raise _unreadable(checkpoint.source, error) from None
            raise CheckpointError(f"{checkpoint.source}: {seems}")
        return checkpoint

    @classmethod
    def open_component(cls, folder: Path, component: str, **about: Any) -> Checkpoint:
        """One component in a local folder: below its own name, as in a whole checkpoint, or at the root.

        `about` are the fields that say where it came from.

        Raises:
            CheckpointError: it is neither here nor there.
        """
        below = (folder / component).is_dir()
        checkpoint = cls(folder, component=component, at_root=not below, **about)
        if not below:
            try:
                names = os.listdir(folder)
            except OSError as error:
                raise _unreadable(checkpoint.source, error) from None
            if not is_component(component, names):
                raise no_component(checkpoint.source, component)
        return checkpoint

    def part(self, component: str) -> Checkpoint:
        """Where `component` is taken from: here, or from elsewhere."""
        return self.elsewhere.get(component, self)

    @cached_property
    def index(self) -> dict[str, Any]:
        """`model_index.json`."""
        return self._json("model_index.json")

    @property
    def components(self) -> list[str]:
        """What is taken from here of the components that `model_index.json` names and that take part in a picture."""
        if self.component is not None:
            return [self.component]
        named = [
            name for name, entry in self.index.items() if isinstance(entry, list) and entry and entry[0] is not None
        ]
        return [name for name in named if name.isidentifier() and name not in UNUSED and name not in self.elsewhere]

    def has(self, component: str) -> bool:
        """Whether the component is there. `latent_upsampler` and its like are, without being in the index."""
        entry = None if self.component else self.index.get(component)
        absent = isinstance(entry, list) and (not entry or entry[0] is None)
        return not absent and self.path(component).is_dir()

    def config(self, component: str) -> dict[str, Any]:
        """`<component>/config.json`, or a scheduler's `scheduler_config.json`.

        Raises:
            CheckpointError: it is not there, or not a JSON object.
        """
        if not self.path(component).is_dir():
            raise self._no_folder(component)
        names = ("scheduler_config.json", "config.json") if component.startswith("scheduler") else ("config.json",)
        name = next((name for name in names if self.path(f"{component}/{name}").is_file()), names[0])
        return self._json(f"{component}/{name}")

    def path(self, relative: str) -> Path:
        """`relative` below the folder.

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

    def named(self, component: str) -> str:
        """How to name a component of this checkpoint in a message."""
        source = self.source.rstrip("/")
        return source if self.at_root else f"{source}/{component}"

    def where(self, path: Path) -> str:
        """How to name a file of this checkpoint in a message."""
        return f"{self.source.rstrip('/')}/{path.relative_to(self.folder).as_posix()}"

    def files(self, component: str) -> list[Path]:
        """The safetensors files of a component in the wanted variant, whole or in shards.

        Raises:
            CheckpointError: there are none, there are only pickles, the variant is not there, a shard is missing.
        """
        where = self.named(component)
        if not self.path(component).is_dir():
            raise self._no_folder(component)
        first = pick(self._listing, component, self.variant, where, self.setting)[0]
        if first.endswith(".json"):
            shards = self._json(f"{component}/{first}").get("weight_map")
            if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
                raise CheckpointError(f"{where}/{first}: has no weight_map; copy or download it again")
            for name in shards.values():
                if "/" in name or "\\" in name:
                    raise CheckpointError(
                        f"{where}/{first}: names {name!r}, which is outside its folder; do not use it"
                    )
                if not name.endswith(".safetensors"):
                    raise CheckpointError(f"{where}/{first}: names {name!r}, which is not a safetensors file; refused")
            paths = [self.path(f"{component}/{name}") for name in sorted(set(shards.values()))]
        elif WEIGHTS.fullmatch(first)["shard"]:  # type: ignore[index]
            raise CheckpointError(f"{where}: {first} is a shard, and its index is missing; copy or download it again")
        else:
            paths = [self.path(f"{component}/{first}")]
        for path in paths:
            if not path.is_file():
                raise CheckpointError(f"{self.where(path)}: is missing; copy or download it again")
        return paths

    def _no_folder(self, component: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: has no folder {component}; the checkpoint is incomplete or of another family of models"
        )

    @property
    def identity(self) -> str:
        """Tells checkpoints apart within a process, without reading weights.

        Made of the source, the revision, and a SHA-256 over the settings, and over the name, size, time and header of
        every weights file: a file that was replaced makes another identity.
        """
        components = sorted(name for name in self.components if self.has(name))
        digest = hashlib.sha256(b"" if self.component else (self.folder / "model_index.json").read_bytes())
        for component in components:
            for path in sorted([*self.path(component).glob("*.json"), *self.path(component).glob("*.txt")]):
                digest.update(f"{component}/{path.name}\n".encode() + path.read_bytes())
            for path in self._weights(component):
                digest.update(f"{component}/{path.name} {_state(path)}\n".encode() + _raw_header(path))
        own = f"{self.source}@{self.revision or 'local'}:{digest.hexdigest()[:32]}"
        return " ".join([own, *(f"{name}={part.identity}" for name, part in sorted(self.elsewhere.items()))])

    def digest(self, components: Iterable[str] | None = None) -> str:
        """SHA-256 of the weights' contents: over one line `sha256  component/file` for each file, sorted.

        Of what is taken from elsewhere, that has its own.

        Every byte is read, once in a process for a file that does not change.
        """
        names = self.components if components is None else components
        lines = [
            f"{_file_digest(path)}  {component}/{path.name}\n"
            for component in sorted(names)
            if self.has(component)
            for path in self._weights(component)
        ]
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    @cached_property
    def _listing(self) -> dict[str, list[str]]:
        """Component folder -> file names."""
        try:
            if self.at_root and self.component:
                return {self.component: os.listdir(self.folder)}
            folders = [entry for entry in self.folder.iterdir() if entry.is_dir() and entry.name not in UNUSED]
            return {folder.name: os.listdir(folder) for folder in folders}
        except OSError as error:
            raise _unreadable(self.source, error) from None

    def _weights(self, component: str) -> list[Path]:
        """`files`, or nothing for a component that has no weights, such as a tokenizer."""
        names = self._listing.get(component, [])
        return self.files(component) if any(n.endswith((".safetensors", *PICKLES)) for n in names) else []

    def _json(self, relative: str) -> dict[str, Any]:
        path = self.path(relative)
        where = self.where(path)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{where}: is missing; copy or download it again") from None
        except OSError as error:
            raise _unreadable(where, error) from None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{where}: is not JSON; copy or download it again") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}: is not a JSON object; copy or download it again")
        return value


_digests: dict[tuple[str, tuple[int, ...]], str] = {}


def _state(path: Path) -> tuple[int, ...]:
    """Changes whenever the file's contents do: clocks tick too slowly to tell a quickly replaced file by its time."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _file_digest(path: Path) -> str:
    key = (os.path.realpath(path), _state(path))
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def no_component(source: str, component: str) -> CheckpointError:
    """The error for a source of `component` that has none."""
    files = "tokenizer.json, or vocab.json and merges.txt," if component.startswith("tokenizer") else "config.json"
    return CheckpointError(
        f"{source}: has neither a folder {component} nor {files} of its own; give a checkpoint or a folder that is one "
        f"{component}"
    )


def _unreadable(where: str, error: OSError) -> CheckpointError:
    return CheckpointError(f"{where}: cannot be read: {error.strerror or error}; check its permissions and the disk")


def _what_else(folder: Path) -> str:
    """What a folder without `model_index.json` seems to be, and what to do about it."""
    names = sorted(entry.name for entry in folder.iterdir())
    if "config.json" in names and variants(names):
        above = " (its parent folder is one)" if (folder.resolve().parent / "model_index.json").is_file() else ""
        return f"is one component, not a checkpoint: give the folder that holds model_index.json{above}"
    for name in names:
        if (folder / name / "model_index.json").is_file():
            return f"has no model_index.json, but its folder {name} has: set model.source={folder / name}"
    single = [name for name in names if name.endswith((".safetensors", *PICKLES))]
    if single:
        return (
            f"has no model_index.json; {single[0]} looks like a single-file checkpoint, which must first be converted "
            "to the diffusers layout"
        )
    return "has no model_index.json; give a folder in the diffusers layout"
