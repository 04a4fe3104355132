"""Finds checkpoints: folders, or repositories on the Hugging Face hub, of which only the needed files are fetched.

Nothing is fetched by surprise: how much it would be is said beforehand, of all sources together, and agreed to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from diffuse.checkpoints.folder import Checkpoint
from diffuse.checkpoints.hub import download as fetch
from diffuse.checkpoints.hub.repository import Plan, Wanted, cached, plan
from diffuse.checkpoints.hub.transfer import cache, explained, readable
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schema import Download
from diffuse.terminal import confirm, say

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def locate(wanted: Sequence[Wanted], consent: Download, command: object = "diffuse download") -> list[Checkpoint]:
    """What is wanted, one checkpoint each, in that order.

    A repository is taken from the hub's cache, without asking the network, when everything needed is there. Otherwise
    it is fetched if `consent` is yes, or asked for on a terminal; where neither can be, `command` is named, whose text
    is what fetches it beforehand.

    Raises:
        ConfigError: there is no consent.
        CheckpointError: there is no such folder or repository, it is gated, its files are not what is needed, or the
            network cannot be reached.
    """
    found = [_local(one) or cached(one) for one in wanted]
    absent = [one for one, checkpoint in zip(wanted, found, strict=True) if checkpoint is None]
    if not absent:
        return [checkpoint for checkpoint in found if checkpoint]
    _require_download(absent, consent, command)
    plans = _plans(absent)
    missing = [plan for plan in plans if plan.missing]
    if missing and consent is Download.ask:
        _ask(missing, f"add model.download=yes, or first run: {command}")
    for each in missing:
        size = readable(each.missing_size)
        say(f"{each.wanted.source} is not here yet: fetching {size} ({len(each.missing)} files)")
    fetched = iter(fetch.fetch(plans, check_all=False))
    return [checkpoint or next(fetched) for checkpoint in found]


def index(wanted: Wanted, consent: Download) -> dict[str, Any]:
    """`model_index.json` of what is wanted: what kind of checkpoint it is. Of a repository, this file of a few hundred
    bytes alone is fetched, if it is not here and `consent` is not never.

    Raises:
        ConfigError, CheckpointError: as `locate`.
    """
    local = _local(wanted)
    if local:
        return local.index
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(wanted.source, "model_index.json", revision=wanted.revision)
    if not isinstance(path, str):
        _require_download([wanted], consent, f"diffuse download model=auto model.source={wanted.source}")
        with explained(wanted.source, wanted.revision, wanted.setting):
            path = hf_hub_download(wanted.source, "model_index.json", revision=wanted.revision)
    return Checkpoint(Path(path).parent, wanted.source).index


def download(wanted: Sequence[Wanted], consent: Download) -> list[Checkpoint]:
    """Fetches what `locate` would need, after saying its size and being told to go on; then checks every file.

    Asks on a terminal; elsewhere `consent` must be yes. Files already here are not fetched again, but they are
    checked, and removed if they are damaged.

    Raises:
        ConfigError: no consent.
        CheckpointError: as `locate`, or a file is not what the hub lists.
    """
    found = [_local(one) for one in wanted]
    for checkpoint in found:
        if checkpoint:
            say(f"{checkpoint.source} is a folder: there is nothing to fetch")
    absent = [one for one, checkpoint in zip(wanted, found, strict=True) if checkpoint is None]
    if not absent:
        return [checkpoint for checkpoint in found if checkpoint]
    if consent is Download.never:
        raise ConfigError("model.download=never: nothing is fetched; leave it out to download")
    plans = _plans(absent)
    for each in plans:
        kept = fetch.started([each])
        begun = f", of which {readable(kept)} are here from an interrupted run" if kept else ""
        say(
            f"{each.wanted.source} at {each.commit[:12]}: {len(each.files)} files, {readable(each.size)}; "
            f"{readable(each.missing_size)} to fetch{begun} into {cache()}"
        )
    missing = [each for each in plans if each.missing]
    if missing and consent is Download.ask:
        _ask(missing, "add --yes to agree")
    fetched = iter(fetch.fetch(plans, check_all=True))
    for each in plans:
        say(f"{each.wanted.source}: complete, every file checked")
    return [checkpoint or next(fetched) for checkpoint in found]


def _plans(wanted: Sequence[Wanted]) -> list[Plan]:
    plans = []
    for one in wanted:
        with explained(one.source, one.revision, one.setting):
            plans.append(plan(one))
    return plans


def _local(wanted: Wanted) -> Checkpoint | None:
    """The folder `wanted.source`; None if it is rather the name of a repository."""
    source, setting = wanted.source, wanted.setting
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        if wanted.alone and wanted.components:
            about = {"source": source, "variant": wanted.variant, "setting": setting}
            return Checkpoint.open_component(folder, wanted.components[0], **about)
        return Checkpoint.open(folder, variant=wanted.variant, source=source, setting=setting)
    if folder.is_file():
        raise CheckpointError(
            f"{source}: is a file; {setting}.source is a folder in the diffusers layout or a hub repository "
            "OWNER/NAME, and a single-file checkpoint must first be converted"
        )
    parent = PurePosixPath(source).parent
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source
    if looks_like_path or (str(parent) != "." and Path(parent).is_dir()):
        raise CheckpointError(
            f"{source}: does not exist; set {setting}.source to a folder or to a hub repository OWNER/NAME"
        )
    if not _REPOSITORY.fullmatch(source) or "--" in source or ".." in source:
        raise CheckpointError(
            f"{source or repr(source)}: is neither a folder nor a hub repository OWNER/NAME; set {setting}.source to "
            "one of these"
        )
    return None


def _require_download(absent: Sequence[Wanted], consent: Download, command: object) -> None:
    """Raises ConfigError where nothing may be fetched, before the network is asked for anything."""
    if consent is Download.never:
        raise ConfigError(
            f"{_names(absent)}: not all that is needed is here, and model.download=never; set it to yes, or first run: "
            f"{command}"
        )


def _ask(plans: Sequence[Plan], otherwise: str) -> None:
    """Asks once for all of it; raises ConfigError if the answer is no, or if there is nobody to ask."""
    names, size = _names([plan.wanted for plan in plans]), readable(sum(plan.missing_size for plan in plans))
    nobody = f"{names}: {size} would be fetched, and there is no terminal to ask on; {otherwise}"
    if not confirm(f"{names}: fetch {size}?", nobody):
        raise ConfigError("nothing was fetched")


def _names(wanted: Sequence[Wanted]) -> str:
    return ", ".join(dict.fromkeys(one.source for one in wanted))
