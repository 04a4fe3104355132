"""Finds a checkpoint: a folder, or a repository on the Hugging Face hub, of which only the needed files are fetched.

huggingface_hub keeps the cache and moves the bytes: a connection that breaks is taken up again where it broke, and a
file that arrived is kept when the program ends early. This module decides which files those are, says beforehand how
large they are, checks afterwards that they are what the hub lists, and explains what went wrong."""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffuse.checkpoint import Checkpoint, pick, variants
from diffuse.errors import CheckpointError, ConfigError
from diffuse.transfer import cache, explained, progress, readable

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL = (".json", ".txt", ".model")
_INDEX = re.compile(r".*\.index(\.\w+)?\.json")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".xml")


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

    source: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing_size(self) -> int:
        return sum(file.size for file in self.missing)


def locate(
    source: str, *, revision: str | None = None, variant: str | None = None, components: Sequence[str] | None = None
) -> Checkpoint:
    """The checkpoint that `source` names: an existing folder, or a repository `OWNER/NAME`.

    A repository is taken from the hub's cache, without asking the network, when everything needed is there. Otherwise
    it is fetched, after a line on standard error that says how much. `revision` (a commit, tag or branch) matters to
    repositories only. `components` are the folders needed; None takes all that `model_index.json` names.

    Raises:
        CheckpointError: there is no such folder or repository, it is gated, its files are not what is needed, or the
            network cannot be reached.
    """
    local = _local(source, variant)
    if local:
        return local
    cached = _cached(source, revision, variant, components)
    if cached:
        return cached
    with explained(source, revision):
        needed = plan(source, revision=revision, variant=variant, components=components)
        _say(f"{source} is not here yet: fetching {readable(needed.missing_size)} ({len(needed.missing)} files)")
        return _fetch(needed, variant, check=needed.missing)


def is_here(
    source: str, *, revision: str | None = None, variant: str | None = None, components: Sequence[str] | None = None
) -> bool:
    """Whether `locate` would find everything on this machine. Touches no network.

    Raises:
        CheckpointError: `source` can only be a folder, and there is none.
    """
    return bool(_local(source, variant) or _cached(source, revision, variant, components))


def index(source: str, revision: str | None = None) -> dict[str, Any]:
    """`model_index.json` of what `source` names: what kind of checkpoint it is. Of a repository, this small file
    alone is fetched, if it is not here.

    Raises:
        CheckpointError: as `locate`.
    """
    local = _local(source, None)
    if local:
        return local.index
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(source, "model_index.json", revision=revision)
    if not isinstance(path, str):
        with explained(source, revision):
            path = hf_hub_download(source, "model_index.json", revision=revision)
    return Checkpoint(Path(path).parent, source).index


def download(
    source: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    components: Sequence[str] | None = None,
    yes: bool = False,
) -> Checkpoint:
    """Fetches what `locate` would need, after saying its size and being told to go on; then checks every file.

    Asks on a terminal; elsewhere `yes` must say so beforehand. Files already here are not fetched again, but they are
    checked, and removed if they are damaged.

    Raises:
        ConfigError: no consent.
        CheckpointError: as `locate`, or a file is not what the hub lists.
    """
    local = _local(source, variant)
    if local:
        _say(f"{source} is a folder: there is nothing to fetch")
        return local
    with explained(source, revision):
        needed = plan(source, revision=revision, variant=variant, components=components)
        _say(
            f"{source} at {needed.commit[:12]}: {len(needed.files)} files, {readable(needed.size)}; "
            f"{readable(needed.missing_size)} to fetch into {cache()}"
        )
        if needed.missing and not yes:
            _ask(needed.missing_size)
        checkpoint = _fetch(needed, variant, check=needed.files)
    _say(f"{source}: complete, every file checked")
    return checkpoint


def plan(
    source: str, *, revision: str | None = None, variant: str | None = None, components: Sequence[str] | None = None
) -> Plan:
    """Asks the hub which files the repository has, and chooses those that are needed."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    info = HfApi().model_info(source, revision=revision, files_metadata=True)
    commit = str(info.sha)
    listed = {
        entry.rfilename: RemoteFile(
            entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else None, entry.blob_id
        )
        for entry in info.siblings or []
    }
    if "model_index.json" not in listed:
        hint = "; it holds single-file checkpoints, which are not read" if _single_files(listed) else ""
        raise CheckpointError(f"{source}: has no model_index.json, so it is not in the diffusers layout{hint}")
    if components is None:
        index = hf_hub_download(source, "model_index.json", revision=commit)
        components = Checkpoint(Path(index).parent, source).components
    files = tuple(listed[path] for path in needed_files(listed, components, variant, source))
    missing = tuple(
        file for file in files if not isinstance(try_to_load_from_cache(source, file.path, revision=commit), str)
    )
    return Plan(source, revision, commit, files, missing)


def _single_files(paths: Iterable[str]) -> bool:
    return any("/" not in path and path.endswith((".safetensors", ".ckpt")) for path in paths)


def needed_files(paths: Iterable[str], components: Sequence[str], variant: str | None, source: str) -> list[str]:
    """The paths, out of all that a repository has, from which `components` are made.

    Settings, tokenizers, and safetensors of one variant a component; no pickles, no weights of other libraries, no
    second copy in another precision.

    Raises:
        CheckpointError: a component or the variant is not there, or only pickles are.
    """
    listing: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder and "/" not in folder:
            listing.setdefault(folder, []).append(name)
    chosen = ["model_index.json"]
    for component in components:
        names = listing.get(component)
        if names is None:
            raise CheckpointError(f"{source}: has no folder {component}; it is of another family of models")
        chosen += [f"{component}/{name}" for name in names if name.endswith(_SMALL) and not _INDEX.fullmatch(name)]
        if any(name.endswith(_WEIGHTS) for name in names):
            chosen += [f"{component}/{name}" for name in pick(listing, component, variant, f"{source}/{component}")]
    return chosen


def _local(source: str, variant: str | None) -> Checkpoint | None:
    """The folder `source`; None if it is rather the name of a repository."""
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return Checkpoint.open(folder, variant=variant, source=source)
    if folder.is_file():
        raise CheckpointError(
            f"{source}: is a file; model.source is a folder in the diffusers layout or a hub repository OWNER/NAME, "
            "and a single-file checkpoint must first be converted"
        )
    parent = PurePosixPath(source).parent
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source
    if looks_like_path or (str(parent) != "." and Path(parent).is_dir()):
        raise CheckpointError(
            f"{source}: does not exist; set model.source to a folder or to a hub repository OWNER/NAME"
        )
    if not _REPOSITORY.fullmatch(source) or "--" in source or ".." in source:
        raise CheckpointError(
            f"{source or repr(source)}: is neither a folder nor a hub repository OWNER/NAME; set model.source to "
            "one of these"
        )
    return None


def _cached(
    source: str, revision: str | None, variant: str | None, components: Sequence[str] | None
) -> Checkpoint | None:
    """The checkpoint in the hub's cache, if everything needed is there. Touches no network."""
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    index = try_to_load_from_cache(source, "model_index.json", revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    checkpoint = Checkpoint(folder, source, revision=folder.name, variant=variant)
    names = checkpoint.components if components is None else components
    try:
        paths = [file.path for file in get_cached_repo_tree(source, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        # Fetched by another program, file by file: judge by what is there.
        return checkpoint if all(_looks_complete(checkpoint, name) for name in names) else None
    complete = all((folder / path).is_file() for path in needed_files(paths, names, variant, source))
    return checkpoint if complete else None


def _looks_complete(checkpoint: Checkpoint, component: str) -> bool:
    folder = checkpoint.path(component)
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if component.startswith("tokenizer"):
        return {"vocab.json", "merges.txt"} <= names or any(name.startswith("tokenizer.") for name in names)
    if component.startswith("scheduler"):
        return "scheduler_config.json" in names
    if "config.json" not in names or not (variants(names) or any(_INDEX.fullmatch(name) for name in names)):
        return False
    try:
        return bool(checkpoint.files(component))
    except CheckpointError:
        return False


def _fetch(needed: Plan, variant: str | None, check: Sequence[RemoteFile]) -> Checkpoint:
    from huggingface_hub import snapshot_download

    stored = cache()
    existing = next(folder for folder in (stored, *stored.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed.missing_size > free:
        raise CheckpointError(
            f"{needed.source}: needs {readable(needed.missing_size)} and {stored} has {readable(free)} free; make "
            "room, or set HF_HOME to a folder on another disk"
        )
    blobs = stored / f"models--{needed.source.replace('/', '--')}" / "blobs"
    with progress(blobs, needed.missing_size):
        # Asked for by the name the user gave, so that the cache remembers which commit that name means.
        folder = Path(
            snapshot_download(
                needed.source,
                revision=needed.revision,
                allow_patterns=[glob.escape(file.path) for file in needed.files],
                max_workers=4,
            )
        )
    if folder.name != needed.commit:
        raise CheckpointError(f"{needed.source}: was changed on the hub meanwhile; run the command again")
    for file in check:
        _check(folder / file.path, file, needed.source)
    return Checkpoint(folder, needed.source, revision=needed.commit, variant=variant)


def _check(path: Path, file: RemoteFile, source: str) -> None:
    """Compares a file with what the hub lists, and removes it if it differs, so that it will be fetched again."""
    with path.open("rb") as opened:
        if file.sha256:
            same = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
        elif file.blob_id:
            data = opened.read()
            # The digest that git gives a file of this content.
            same = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == file.blob_id
        else:
            same = path.stat().st_size == file.size
    if not same:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{source}/{file.path}: is not what the hub lists; it was removed: run the command again")


def can_ask() -> bool:
    """Whether there is a terminal to ask the user on."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(size: int) -> None:
    if not can_ask():
        raise ConfigError(f"{readable(size)} would be fetched, and there is no terminal to ask on; add --yes to agree")
    print(f"Fetch {readable(size)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was fetched")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
