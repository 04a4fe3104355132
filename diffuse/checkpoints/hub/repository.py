"""The files of a repository on the Hugging Face hub: which there are, and which of them are needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.checkpoints.folder import CheckpointFolder, no_component
from diffuse.checkpoints.hub.progress import readable_size
from diffuse.checkpoints.layout import ADAPTER_CONFIG, is_component, pick_files
from diffuse.checkpoints.source import Source
from diffuse.errors import CheckpointError

_EMPTY = hashlib.sha256().hexdigest()
SMALL = (".json", ".txt", ".model")
SHARD_INDEX = re.compile(r".*\.index(\.\w+)?\.json")  # of shards, of any library's weights
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".xml")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as the hub lists it. Large files have a `sha256`, small ones git's own `blob_id`.

    Some hubs list none of these, and no size.
    """

    path: str
    size: int | None  # bytes
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class DownloadPlan:
    """The `files` that are needed of a repository at one commit, and those of them that are `missing` here."""

    source: Source
    commit: str
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]

    @property
    def missing_size(self) -> int:
        """Is the size of the missing files, in bytes, as far as the hub lists it."""
        return sum(file.size or 0 for file in self.missing)

    @property
    def missing_weights_size(self) -> int:
        """Is the size of the missing files that are no settings, in bytes."""
        return sum(file.size or 0 for file in self.missing if not file.path.endswith(SMALL))

    @property
    def at_root(self) -> bool:
        """Tells whether the needed component is the repository itself."""
        return self.source.single and all("/" not in file.path for file in self.files)


def plan_download(source: Source) -> DownloadPlan:
    """Asks the hub which files the repository has, and chooses those that are needed.

    Raises:
        CheckpointError: they are not there.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    repository, components = source.repository, source.components
    info = HfApi().model_info(repository, revision=source.revision, files_metadata=True)
    commit = str(info.sha)
    listed = {
        entry.rfilename: RemoteFile(
            entry.rfilename, _size(entry), entry.lfs.sha256 if entry.lfs else None, entry.blob_id
        )
        for entry in info.siblings or []
    }
    single = [path for path in listed if "/" not in path and path.endswith((".safetensors", ".ckpt"))]
    if source.hub_file is not None and source.hub_file not in listed:
        hint = f"; it has {', '.join(single[:5])}" if single else ""
        raise CheckpointError(f"{repository}: has no file {source.hub_file}{hint}")
    if "model_index.json" not in listed and not source.single and source.hub_file is None:
        hint = f"; name one of its files, such as {repository}/{single[0]}" if single else ""
        raise CheckpointError(f"{repository}: has no model_index.json, so it is not in the diffusers layout{hint}")
    if components is None and source.hub_file is None:
        index = hf_hub_download(repository, "model_index.json", revision=commit)
        components = tuple(CheckpointFolder(Path(index).parent, repository).components)

    def plan(choice: Source) -> DownloadPlan:
        file = source.hub_file
        paths = needed_files(listed, choice, components or ()) if file is None else with_settings(file, listed)
        files = tuple(listed[path] for path in paths)
        here = [isinstance(try_to_load_from_cache(repository, file.path, revision=commit), str) for file in files]
        return DownloadPlan(
            choice, commit, files, tuple(file for file, is_here in zip(files, here, strict=True) if not is_here)
        )

    plans = []
    for choice in source.choices:
        with suppress(CheckpointError):  # it is not published
            plans.append(plan(choice))
    if not plans:
        return plan(source)
    if any(file.size is None for each in plans for file in each.missing):  # nobody knows which is smaller
        return next((each for each in plans if not each.missing), plans[0])
    return min(plans, key=lambda each: each.missing_size)


def _size(entry: Any) -> int | None:
    """Returns the size that the hub lists for a file, in bytes; None where it lists none."""
    size = entry.lfs.size if entry.lfs else entry.size
    if size == 0 and entry.lfs and entry.lfs.sha256 != _EMPTY:
        return None
    return None if size is None else int(size)


def readable_sizes(files: Iterable[RemoteFile]) -> str:
    """Formats the size of files together, as far as the hub lists it."""
    sizes = [file.size for file in files]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return readable_size(sum(known))
    return f"at least {readable_size(sum(known))}" if sum(known) else "an unknown size"


def needed_files(paths: Iterable[str], source: Source, components: Sequence[str]) -> list[str]:
    """Chooses the paths, out of all that a repository has, that `components` need.

    These are settings, tokenizers, and weights of one variant a component: no pickles beside safetensors, no weights of
    other libraries, no second copy in another precision.

    Raises:
        CheckpointError: a component or the variant is not there.
    """
    listing: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if "/" not in folder:
            listing.setdefault(folder, []).append(name)
    root = listing.pop("", [])
    if source.single and components[0] not in listing:
        if not is_component(components[0], root):
            raise no_component(source.location, components[0])
        return _files_of(components[0], {components[0]: root}, "", source)
    chosen = [] if source.single else ["model_index.json"]
    for component in components:
        if component not in listing:
            raise CheckpointError(f"{source.location}: has no folder {component}; it is of another family of models")
        chosen += _files_of(component, listing, f"{component}/", source)
    return chosen


def with_settings(file: str, paths: Collection[str]) -> list[str]:
    """Returns a file, and peft's settings where they lie beside it: they say the scale of a LoRA."""
    folder = file.rpartition("/")[0]
    beside = f"{folder}/{ADAPTER_CONFIG}" if folder else ADAPTER_CONFIG
    return [file, beside] if beside in paths else [file]


def _files_of(component: str, listing: dict[str, list[str]], folder: str, source: Source) -> list[str]:
    """Chooses the paths of one component, which lie in `folder`."""
    names = listing[component]
    chosen = [name for name in names if name.endswith(SMALL) and not SHARD_INDEX.fullmatch(name)]
    if any(name.endswith(_WEIGHTS) for name in names) and not component.startswith("tokenizer"):
        where = f"{source.location}/{folder}".rstrip("/")
        chosen += pick_files(listing, component, source.variant, where, source.setting)
    return [f"{folder}{name}" for name in chosen]
