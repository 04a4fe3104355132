"""The hub's cache on this machine: where it is, and whether a source's files are already in it.

Nothing here touches the network.
"""

from __future__ import annotations

from pathlib import Path

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.hub.repository import SHARD_INDEX, needed_files, with_settings
from diffuse.checkpoints.layout import ADAPTER_CONFIG, find_variants, is_component
from diffuse.checkpoints.source import LocalCheckpoint, Source
from diffuse.errors import CheckpointError
from diffuse.paths import user_path

_OF_PEFT = "adapter_model.safetensors"
_MARKS = ("config.json", "vocab.json", "tokenizer.json")  # one of them is in every component's folder


def cache_folder() -> Path:
    """Returns the folder where huggingface_hub keeps what it fetched: HF_HUB_CACHE, or `hub` below HF_HOME."""
    from huggingface_hub import constants

    return user_path(constants.HF_HUB_CACHE, "HF_HUB_CACHE")


def cached_checkpoint(source: Source) -> LocalCheckpoint | None:
    """Returns the source's checkpoint in the cache, None unless every needed file is there."""
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    if source.hub_file is not None:
        file = try_to_load_from_cache(source.repository, source.hub_file, revision=source.revision)
        if not isinstance(file, str):
            return None
        snapshot = Path(file).parents[source.hub_file.count("/")]
        try:
            listed = {each.path for each in get_cached_repo_tree(source.repository, revision=snapshot.name)}
        except CachedRepoTreeNotFoundError:  # a file of this name has settings beside it, which may be missing
            name = f"{source.hub_file.removesuffix(_OF_PEFT)}{ADAPTER_CONFIG}"
            listed = {name} if Path(source.hub_file).name == _OF_PEFT else set()
        here = all((snapshot / path).is_file() for path in with_settings(source.hub_file, listed))
        return source.checkpoint(snapshot, snapshot.name) if here else None
    checkpoint = _snapshot(source)
    if checkpoint is None:
        return None
    folder = checkpoint.folder
    names = checkpoint.components if source.components is None else source.components
    try:
        paths = [file.path for file in get_cached_repo_tree(source.repository, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        # Fetched by another program, file by file: judge by what is there.
        return checkpoint if all(_looks_complete(checkpoint, name) for name in names) else None
    complete = all((folder / path).is_file() for path in needed_files(paths, source, names))
    return checkpoint if complete else None


def cached_configuration(source: Source) -> CheckpointFolder | None:
    """Returns the source's settings in the cache, whether its weights are there or not; None unless all are there."""
    checkpoint = None if source.hub_file is not None else _snapshot(source)
    if checkpoint is None:
        return None
    names = checkpoint.components if source.components is None else source.components
    marks = ("scheduler_config.json", *_MARKS)
    here = all(any(checkpoint.path(f"{name}/{mark}").is_file() for mark in marks) for name in names)
    return checkpoint if here else None


def _snapshot(source: Source) -> CheckpointFolder | None:
    """Returns what the cache has of the source's revision, complete or not; None where it has none."""

    def checkpoint(snapshot: Path, *, at_root: bool = False) -> CheckpointFolder:
        found = source.checkpoint(snapshot, snapshot.name, at_root=at_root)
        assert isinstance(found, CheckpointFolder)
        return found

    from huggingface_hub import try_to_load_from_cache

    def folder(path: str) -> Path | None:
        file = try_to_load_from_cache(source.repository, path, revision=source.revision)
        return Path(file).parents[path.count("/")] if isinstance(file, str) else None

    if not source.single:
        whole = folder("model_index.json")
        return None if whole is None else checkpoint(whole)
    assert source.components is not None
    below = [f"{source.components[0]}/{mark}" for mark in _MARKS]
    for at_root, paths in ((False, below), (True, _MARKS)):
        for path in paths:
            if (snapshot := folder(path)) is not None:
                return checkpoint(snapshot, at_root=at_root)
    return None


def _looks_complete(checkpoint: CheckpointFolder, component: str) -> bool:
    folder = checkpoint.path(component)
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if component.startswith("scheduler"):
        return "scheduler_config.json" in names
    if not is_component(component, names):
        return False
    if component.startswith("tokenizer"):
        return True
    if not (find_variants(names) or any(SHARD_INDEX.fullmatch(name) for name in names)):
        return False
    try:
        return bool(checkpoint.files(component))
    except CheckpointError:
        return False
