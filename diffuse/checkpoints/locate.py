"""Finds the checkpoints of sources: local folders, or hub repositories, of which only the needed files are fetched.

Nothing is fetched by surprise: the size of all sources together is stated first, and the user agrees to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.hub.cache import cache_folder, cached_checkpoint, cached_configuration
from diffuse.checkpoints.hub.download import download_files, fetch_small_files, partial_size
from diffuse.checkpoints.hub.errors import hub_errors
from diffuse.checkpoints.hub.progress import readable_size
from diffuse.checkpoints.hub.repository import DownloadPlan, plan_download, readable_sizes
from diffuse.checkpoints.layout import PICKLES, SINGLE
from diffuse.checkpoints.safetensors_file import unreadable
from diffuse.checkpoints.single_file import SingleFile
from diffuse.checkpoints.source import LocalCheckpoint, Source
from diffuse.errors import CheckpointError, ConfigError, NotFetched
from diffuse.paths import user_path
from diffuse.schema import Download
from diffuse.terminal import confirm, say

_WEIGHTS = (*SINGLE, ".ckpt", ".pt", ".pth", ".bin")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def locate_checkpoints(
    sources: Sequence[Source], consent: Download, command: object = "diffuse download"
) -> list[LocalCheckpoint]:
    """Returns the checkpoint of each source, in the same order.

    A repository is taken from the hub's cache, without a request to the network, when every needed file is there.
    Otherwise it is fetched if `consent` is yes, or if the user agrees on a terminal.

    Args:
        sources: folders and repositories.
        consent: whether files may be fetched.
        command: its text is the command that fetches everything beforehand; for messages.

    Raises:
        ConfigError: there is no consent.
        CheckpointError: there is no such folder or repository, it is gated, its files are not what is needed, or the
            network cannot be reached.
    """
    checkpoints: list[LocalCheckpoint | None] = []
    for source in sources:
        checkpoints.append(_local_checkpoint(source) or _cached_checkpoint(source))
    absent = [source for source, checkpoint in zip(sources, checkpoints, strict=True) if checkpoint is None]
    if not absent:
        return [checkpoint for checkpoint in checkpoints if checkpoint]
    _require_download(absent, consent, command)
    plans = _plan_downloads(absent)
    incomplete = [plan for plan in plans if plan.missing]
    if incomplete and consent is Download.ask:
        _ask(incomplete, f"add model.download=yes, or first run: {command}")
    for plan in incomplete:
        size = readable_sizes(plan.missing)
        say(f"{plan.source.location} is not here yet: fetching {size} ({len(plan.missing)} files)")
    fetched = iter(download_files(plans, check_all=False))
    return [checkpoint or next(fetched) for checkpoint in checkpoints]


@dataclass(frozen=True)
class LocatedConfiguration:
    """The settings of a source, and the bytes of its files as the hub lists them: all, and those not here."""

    checkpoint: LocalCheckpoint
    size: int | None = None
    missing: int | None = None


def locate_configurations(
    sources: Sequence[Source], consent: Download, known: Callable[[Source], CheckpointFolder | None]
) -> list[LocatedConfiguration]:
    """Returns the settings of each source, in the same order, whether its weights are here or not.

    The hub is asked only for what is neither here nor `known`, with the user's consent.

    Raises:
        ConfigError, CheckpointError: as `locate_checkpoints`.
    """
    located: list[LocatedConfiguration | None] = []
    for source in sources:
        folder: LocalCheckpoint | None = _local_checkpoint(source) or _cached_checkpoint(source)
        folder = folder or cached_configuration(source) or known(source)
        located.append(None if folder is None else LocatedConfiguration(folder))
    absent = [source for source, each in zip(sources, located, strict=True) if each is None]
    for source in absent:
        if source.hub_file is not None:
            raise CheckpointError(
                f"{source.location}: is not here yet, and only a file that is here says what it is; fetch it with "
                "diffuse download"
            )
    if absent:
        names = _locations(absent)
        if consent is Download.never:
            raise NotFetched(f"{names}: its settings are not here, and model.download=never; set it to yes")
        question = f"{names}: ask the hub for its settings and sizes?"
        if consent is Download.ask and not confirm(question, f"{question[:-1]}: add model.download=yes to agree"):
            raise ConfigError("nothing was fetched")
    asked = iter([_fetch_configuration(plan) for plan in _plan_downloads(absent)])
    return [each or next(asked) for each in located]


def _fetch_configuration(plan: DownloadPlan) -> LocatedConfiguration:
    folder = fetch_small_files(plan)
    checkpoint = plan.source.checkpoint(folder, plan.commit, at_root=plan.at_root)
    if any(file.size is None for file in plan.files):
        return LocatedConfiguration(checkpoint)
    return LocatedConfiguration(checkpoint, sum(file.size or 0 for file in plan.files), plan.missing_weights_size)


def model_index(source: Source, consent: Download) -> dict[str, Any]:
    """Returns the content of a source's `model_index.json`, which names the family of the checkpoint.

    Of a repository, only this file of a few hundred bytes is fetched, if it is not here and `consent` is not never. A
    single file has none, and is fetched itself, with the user's consent.

    Raises:
        ConfigError, CheckpointError: as `locate_checkpoints`.
    """
    local = _local_checkpoint(source)
    if local is None and source.hub_file is not None:
        command = f"diffuse download model=auto model.source={source.location}"
        (local,) = locate_checkpoints([source], consent, command)
    if local:
        return local.index
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(source.location, "model_index.json", revision=source.revision)
    if not isinstance(path, str):
        _require_download([source], consent, f"diffuse download model=auto model.source={source.location}")
        with hub_errors(source.location, source.revision, source.setting):
            path = hf_hub_download(source.location, "model_index.json", revision=source.revision)
    return CheckpointFolder(Path(path).parent, source.location).index


def download_checkpoints(sources: Sequence[Source], consent: Download) -> list[LocalCheckpoint]:
    """Fetches what `locate_checkpoints` would need, once its size is stated and agreed to; then checks every file.

    Asks on a terminal; elsewhere `consent` must be yes. Files already here are not fetched again, but they are
    checked, and removed if they are damaged.

    Raises:
        ConfigError: there is no consent.
        CheckpointError: as `locate_checkpoints`, or a file is not what the hub lists.
    """
    checkpoints = [_local_checkpoint(source) for source in sources]
    for checkpoint in checkpoints:
        if checkpoint:
            kind = "a folder" if isinstance(checkpoint, CheckpointFolder) else "a file"
            say(f"{checkpoint.source} is {kind}: there is nothing to fetch")
    absent = [source for source, checkpoint in zip(sources, checkpoints, strict=True) if checkpoint is None]
    if not absent:
        return [checkpoint for checkpoint in checkpoints if checkpoint]
    if consent is Download.never:
        raise NotFetched("model.download=never: nothing is fetched; leave it out to download")
    plans = _plan_downloads(absent)
    for plan in plans:
        kept = partial_size([plan])
        resumed = f", of which {readable_size(kept)} are here from an interrupted run" if kept else ""
        say(
            f"{plan.source.location} at {plan.commit[:12]}: {len(plan.files)} files, {readable_sizes(plan.files)}; "
            f"{readable_sizes(plan.missing)} to fetch{resumed} into {cache_folder()}"
        )
    incomplete = [plan for plan in plans if plan.missing]
    if incomplete and consent is Download.ask:
        _ask(incomplete, "add --yes to agree")
    fetched = iter(download_files(plans, check_all=True))
    for plan in plans:
        say(f"{plan.source.location}: complete, every file checked")
    return [checkpoint or next(fetched) for checkpoint in checkpoints]


def _plan_downloads(sources: Sequence[Source]) -> list[DownloadPlan]:
    plans = []
    for source in sources:
        with hub_errors(source.location, source.revision, source.setting):
            plans.append(plan_download(source))
    return plans


def _cached_checkpoint(source: Source) -> LocalCheckpoint | None:
    """Returns the first of the source's choices that the cache has; None where it has neither."""
    first_error: CheckpointError | None = None
    for choice in source.choices:
        try:
            if checkpoint := cached_checkpoint(choice):
                return checkpoint
        except CheckpointError as error:  # that variant is not published
            first_error = first_error or error
    if first_error is not None and len(source.choices) == 1:
        raise first_error
    return None


def _local_checkpoint(source: Source) -> LocalCheckpoint | None:
    """Returns the checkpoint in the folder or file that a source names; None if it names a repository."""
    location, setting = source.location, source.setting
    folder = user_path(location, f"{setting}.source")
    try:
        is_folder, is_file = bool(location) and folder.is_dir(), folder.is_file()
    except OSError as error:
        raise unreadable(f"{setting}.source={location}", error) from None
    if is_folder:
        if source.single and source.components:
            component = source.components[0]
            return CheckpointFolder.open_component(
                folder, component, variant=source.variant, source=location, setting=setting
            )
        return CheckpointFolder.open(folder, variant=source.variant, source=location, setting=setting)
    if is_file:
        if folder.suffix.lower() not in (*SINGLE, *PICKLES):
            raise CheckpointError(
                f"{location}: is no file of weights ({', '.join((*SINGLE, *PICKLES))}); {setting}.source is one, a "
                "folder in the diffusers layout, or a hub repository OWNER/NAME"
            )
        alone = source.components[0] if source.single and source.components else None
        return SingleFile(folder, location, setting=setting, component=alone)
    if location.count("/") < 2 and location.lower().endswith(_WEIGHTS):  # a file's name, and no repository's
        raise CheckpointError(
            f"{location}: there is no such file; set {setting}.source to one, to a folder or to a hub repository "
            "OWNER/NAME"
        )
    parent = PurePosixPath(location).parent
    deep = location.count("/") > 1 and source.hub_file is None
    looks_like_path = location.startswith(("/", ".", "~")) or deep or "\\" in location
    if looks_like_path or (str(parent) != "." and Path(parent).is_dir()):
        raise CheckpointError(
            f"{location}: does not exist; set {setting}.source to a folder or to a hub repository OWNER/NAME"
        )
    if not _REPOSITORY.fullmatch(source.repository) or "--" in location or ".." in location:
        raise CheckpointError(
            f"{location or repr(location)}: is neither a folder nor a hub repository OWNER/NAME; set {setting}.source "
            "to one of these"
        )
    return None


def _require_download(absent: Sequence[Source], consent: Download, command: object) -> None:
    """Raises ConfigError where nothing may be fetched, before any request to the network."""
    if consent is Download.never:
        raise NotFetched(
            f"{_locations(absent)}: not all that is needed is here, and model.download=never; set it to yes, or first "
            f"run: {command}"
        )


def _ask(plans: Sequence[DownloadPlan], other_way: str) -> None:
    """Asks once for all plans; raises ConfigError if the answer is no, or if there is nobody to ask."""
    locations = _locations([plan.source for plan in plans])
    size = readable_sizes(file for plan in plans for file in plan.missing)
    no_terminal = f"{locations}: {size} would be fetched, and there is no terminal to ask on; {other_way}"
    if not confirm(f"{locations}: fetch {size}?", no_terminal):
        raise ConfigError("nothing was fetched")


def _locations(sources: Sequence[Source]) -> str:
    return ", ".join(dict.fromkeys(source.location for source in sources))
