"""What a repository on the Hugging Face hub has, which of its files are needed, and which are in the cache already."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffuse.checkpoints.folder import Checkpoint, no_component
from diffuse.checkpoints.layout import is_component, pick, variants
from diffuse.errors import CheckpointError

_SMALL = (".json", ".txt", ".model")
_INDEX = re.compile(r".*\.index(\.\w+)?\.json")  # of shards, of any library's weights
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".xml")
_MARKS = ("config.json", "vocab.json", "tokenizer.json")  # one of them is in every component's folder


@dataclass(frozen=True)
class Wanted:
    """What is needed of a source, a folder or a repository `OWNER/NAME`.

    `revision` (a commit, tag or branch) matters to repositories only. `components` are the folders needed; None takes
    all that `model_index.json` names. `setting` is what its fields begin with in the configuration.
    """

    source: str
    revision: str | None = None
    variant: str | None = None
    components: tuple[str, ...] | None = None
    setting: str = "model"
    alone: bool = False  # one component without the rest of a checkpoint, from which it is taken or which it is

    def checkpoint(self, folder: Path, commit: str | None = None, *, at_root: bool = False) -> Checkpoint:
        """What is wanted, once it is in `folder`."""
        component = self.components[0] if self.alone and self.components else None
        return Checkpoint(folder, self.source, commit, self.variant, self.setting, component, at_root)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as the hub lists it. Large files have a `sha256`, small ones git's own `blob_id`."""

    path: str
    size: int  # bytes
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class Plan:
    """What would be fetched: the `files` that are needed at one commit, and those of them that are `missing` here."""

    wanted: Wanted
    commit: str
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing_size(self) -> int:
        return sum(file.size for file in self.missing)

    @property
    def at_root(self) -> bool:
        """Whether the component that is wanted is the repository itself."""
        return self.wanted.alone and all("/" not in file.path for file in self.files)


def plan(wanted: Wanted) -> Plan:
    """Asks the hub which files the repository has, and chooses those that are needed.

    Raises:
        CheckpointError: they are not there.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    source, components = wanted.source, wanted.components
    info = HfApi().model_info(source, revision=wanted.revision, files_metadata=True)
    commit = str(info.sha)
    listed = {
        entry.rfilename: RemoteFile(
            entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else None, entry.blob_id
        )
        for entry in info.siblings or []
    }
    if "model_index.json" not in listed and not wanted.alone:
        hint = "; it holds single-file checkpoints, which are not read" if _single_files(listed) else ""
        raise CheckpointError(f"{source}: has no model_index.json, so it is not in the diffusers layout{hint}")
    if components is None:
        index = hf_hub_download(source, "model_index.json", revision=commit)
        components = tuple(Checkpoint(Path(index).parent, source).components)
    files = tuple(listed[path] for path in needed_files(listed, wanted, components))
    missing = tuple(
        file for file in files if not isinstance(try_to_load_from_cache(source, file.path, revision=commit), str)
    )
    return Plan(wanted, commit, files, missing)


def _single_files(paths: Iterable[str]) -> bool:
    return any("/" not in path and path.endswith((".safetensors", ".ckpt")) for path in paths)


def needed_files(paths: Iterable[str], wanted: Wanted, components: Sequence[str]) -> list[str]:
    """The paths, out of all that a repository has, from which `components` are made.

    Settings, tokenizers, and safetensors of one variant a component; no pickles, no weights of other libraries, no
    second copy in another precision.

    Raises:
        CheckpointError: a component or the variant is not there, or only pickles are.
    """
    listing: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if "/" not in folder:
            listing.setdefault(folder, []).append(name)
    root = listing.pop("", [])
    if wanted.alone and components[0] not in listing:
        if not is_component(components[0], root):
            raise no_component(wanted.source, components[0])
        return _files_of(components[0], {components[0]: root}, "", wanted)
    chosen = [] if wanted.alone else ["model_index.json"]
    for component in components:
        if component not in listing:
            raise CheckpointError(f"{wanted.source}: has no folder {component}; it is of another family of models")
        chosen += _files_of(component, listing, f"{component}/", wanted)
    return chosen


def _files_of(component: str, listing: dict[str, list[str]], folder: str, wanted: Wanted) -> list[str]:
    """Those of one component, which lie in `folder`."""
    names = listing[component]
    chosen = [name for name in names if name.endswith(_SMALL) and not _INDEX.fullmatch(name)]
    if any(name.endswith(_WEIGHTS) for name in names) and not component.startswith("tokenizer"):
        where = f"{wanted.source}/{folder}".rstrip("/")
        chosen += pick(listing, component, wanted.variant, where, wanted.setting)
    return [f"{folder}{name}" for name in chosen]


def cached(wanted: Wanted) -> Checkpoint | None:
    """What is wanted from the hub's cache, if everything needed is there. Touches no network."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    found = _snapshot(wanted)
    if found is None:
        return None
    folder, at_root = found
    checkpoint = wanted.checkpoint(folder, folder.name, at_root=at_root)
    names = checkpoint.components if wanted.components is None else wanted.components
    try:
        paths = [file.path for file in get_cached_repo_tree(wanted.source, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        # Fetched by another program, file by file: judge by what is there.
        return checkpoint if all(_looks_complete(checkpoint, name) for name in names) else None
    complete = all((folder / path).is_file() for path in needed_files(paths, wanted, names))
    return checkpoint if complete else None


def _snapshot(wanted: Wanted) -> tuple[Path, bool] | None:
    """The folder in the cache that has the wanted revision, and whether a component is at its root."""
    from huggingface_hub import try_to_load_from_cache

    def folder(path: str) -> Path | None:
        found = try_to_load_from_cache(wanted.source, path, revision=wanted.revision)
        return Path(found).parents[path.count("/")] if isinstance(found, str) else None

    if not wanted.alone:
        whole = folder("model_index.json")
        return None if whole is None else (whole, False)
    assert wanted.components is not None
    below = [f"{wanted.components[0]}/{mark}" for mark in _MARKS]
    for at_root, paths in ((False, below), (True, _MARKS)):
        for path in paths:
            if (found := folder(path)) is not None:
                return found, at_root
    return None


def _looks_complete(checkpoint: Checkpoint, component: str) -> bool:
    folder = checkpoint.path(component)
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if component.startswith("scheduler"):
        return "scheduler_config.json" in names
    if not is_component(component, names):
        return False
    if component.startswith("tokenizer"):
        return True
    if not (variants(names) or any(_INDEX.fullmatch(name) for name in names)):
        return False
    try:
        return bool(checkpoint.files(component))
    except CheckpointError:
        return False
