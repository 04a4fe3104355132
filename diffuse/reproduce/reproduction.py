"""Reproductions: a recorded run as a request, to be run again.

A record may come from a stranger: it is data. It decides which image is made, within limits; where files are written
and what is tracked is the user's own affair, and a local file is read only if it is the one that was read then.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from diffuse.config.compose import compose_config
from diffuse.config.inputs import Inputs
from diffuse.config.own import SEARCHPATH
from diffuse.config.quoting import is_listed_source
from diffuse.config.request import RequestDraft, draft_requests
from diffuse.errors import ConfigError, MediaError
from diffuse.media.images import InputImage, file_sha256
from diffuse.media.load import content_sha256, read_record
from diffuse.media.video import Video, is_frames_folder
from diffuse.paths import user_path
from diffuse.record.recorded_run import RecordedRun, read_recorded_run, recorded_run
from diffuse.reproduce.recorded_config import OWN_GROUPS, restore_config
from diffuse.reproduce.recorded_files import restore_files
from diffuse.schema import COMPONENTS, FILE_FIELDS, TrackingConfig

# Overrides that a user may add to a record: groups, the files of the images that it started from, and weights.
_GROUPS = (*OWN_GROUPS, "hardware", "memory_profile", "text_backend")
_INPUT_FILES = FILE_FIELDS
_WEIGHTS = re.compile(rf"(model|refiner)(\.({'|'.join(COMPONENTS)}))?\.(source|revision|variant)|model\.download")
_RUN_ID = re.compile(r"[\w-]{8,}")  # may be a run's id, because it has no suffix of a file


@dataclass(frozen=True)
class Reproduction:
    """A recorded run as a request. Images are counted from 0 in this run, which may be a part of the recorded one."""

    recorded: RecordedRun
    cfg: DictConfig
    drafts: list[RequestDraft]
    overrides: list[str]
    digests: Mapping[int, str]
    """The recorded SHA-256 of the pixels, by image."""
    pixels: Mapping[int, np.ndarray]
    """The recorded pixels, uint8 RGB `[H, W, 3]`, of the images that are at hand."""
    films: Mapping[int, Video]
    """The recorded files of the films that are at hand."""
    sounds: Mapping[int, str | None]
    """The recorded SHA-256 of the sound, None where there was none, by film."""
    before: Sequence[int]
    """Seeds that were computed in one batch with the images, before theirs."""
    after: Sequence[int]
    """And after theirs."""
    notes: list[str]
    """For the user, before the run, a line each."""
    step_downs: Sequence[Mapping[str, Any]]
    """What the run did with less since memory ran out; nothing where the user says what memory may be used."""


def find_reproduction(target: str, overrides: Sequence[str] = ()) -> Reproduction:
    """Builds the reproduction of a file, or of a run in the user's tracking store.

    Args:
        target: a file with a record, a folder of frames, or the id of a run.
        overrides: see `build_reproduction`.

    Raises:
        DiffuseError: there is no such file or run, or as `read_recorded_run` and `build_reproduction` raise.
    """
    if not target:
        raise ConfigError("reproduce: make what again? Give a picture, a record.json, a job.json or the id of a run")
    path = user_path(target)
    if _RUN_ID.fullmatch(target) and not path.exists():
        return build_reproduction(_tracked_run(target, compose_config(overrides)), overrides)
    return build_reproduction(read_recorded_run(path), overrides)


def _tracked_run(run_id: str, own: DictConfig) -> RecordedRun:
    """Reads the record of a run, and its images, from the tracking store."""
    from diffuse.tracking.query import StoreReader  # which imports MLflow

    try:
        reader = StoreReader(cast(TrackingConfig, OmegaConf.to_object(own.tracking)))
    except ConfigError as error:
        raise ConfigError(f"{run_id}: there is no such file; and as a run: {error}") from error
    run = reader.run(run_id)
    folder, recorded = Path(tempfile.mkdtemp(prefix="diffuse-")), None
    try:
        record = reader.record(run, folder)
        files = {}
        for path in reader.media(run, folder):
            with suppress(MediaError):
                index = read_record(path).get("image", {}).get("index")
                files[index] = path
        recorded = recorded_run(record, f"run {run_id}", files)
        return recorded
    finally:
        if recorded is not None and recorded.films:  # whose frames are read when they are compared
            weakref.finalize(recorded, shutil.rmtree, folder, ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def build_reproduction(recorded: RecordedRun, overrides: Sequence[str] = ()) -> Reproduction:
    """Builds the request that makes the images of a recorded run again.

    The bits of an image can depend on the batch that it is computed in. So the rest of its batch is made too, whether
    that was of the same run or of other jobs of a sweep.

    Args:
        overrides: the user's own: where to write, which hardware, and where a file is that the record names.

    Raises:
        ConfigError: an override is of something else, or the record asks for something impossible or far from usual.
        MediaError: an image that it started from is missing, or another one.
    """
    given, overrides = overrides, [each for each in overrides if not each.startswith(f"{SEARCHPATH}=")]
    given_values = (each.partition("=") for each in overrides)
    own_files = {name: value for name, _, value in given_values if is_listed_source(name)}
    for override in overrides:
        name = override.partition("=")[0]
        if name in own_files:
            continue
        if name.partition(".")[0] not in _GROUPS and name not in _INPUT_FILES and not _WEIGHTS.fullmatch(name):
            choices = ", ".join((*_GROUPS, *_INPUT_FILES, "model.source", "lora.0.source", "embedding.0.source"))
            raise ConfigError(f"{override}: that is for the record to say; what may be given is of {choices}")
    own = compose_config([each for each in given if each.partition("=")[0] not in own_files])
    own_names = {override.partition("=")[0] for override in overrides} - own_files.keys()
    try:
        cfg, notes = restore_config(recorded.record, own, own_names)
    except ConfigError as error:
        raise ConfigError(f"{recorded.label}: {error}") from None
    for name in OWN_GROUPS:
        cfg[name] = own[name]
    for name in own_names:
        if "." in name or name in _INPUT_FILES:
            OmegaConf.update(cfg, name, OmegaConf.select(own, name))
    _check_inputs(cfg, recorded, own_names)
    notes += restore_files(cfg, recorded, own_files)
    first = min(recorded.digests)
    before, after = _batch_neighbors(cfg, recorded)
    cfg.seed, cfg.num_images = cfg.seed + first, len(recorded.digests)
    drafts = draft_requests(cfg)
    notes += _input_notes(drafts[0].inputs, recorded.record)
    recorded_overrides = [each for each in recorded.record["overrides"] if _is_kept(each, own_names)]
    return Reproduction(
        recorded,
        cfg,
        drafts,
        [*recorded_overrides, f"seed={cfg.seed}", f"num_images={cfg.num_images}", *overrides],
        {index - first: digest for index, digest in recorded.digests.items()},
        {index - first: pixels for index, pixels in recorded.pixels.items()},
        {index - first: film for index, film in recorded.films.items()},
        {index - first: recorded.sound_sha256(index) for index in recorded.digests},
        before,
        after,
        notes,
        [] if any(name.startswith("memory_profile") for name in own_names) else recorded.record.get("step_downs", []),
    )


def _is_kept(override: str, own_names: set[str]) -> bool:
    """Returns whether an override of the recorded run is one of this run too."""
    name = override.partition("=")[0]
    return name.partition(".")[0] not in (*OWN_GROUPS, "seed", "num_images", "prompt_file") and name not in own_names


def _batch_neighbors(cfg: DictConfig, recorded: RecordedRun) -> tuple[list[int], list[int]]:
    """Returns the seeds before and after those of the images, in the batches in which they were computed."""
    batch = recorded.record.get("batch") or {"seeds": range(cfg.seed, cfg.seed + cfg.num_images), "first": 0}
    seeds, offset = list(batch["seeds"]), batch["first"]
    strict = recorded.record["hardware"].get("deterministic") == "strict"
    size = 1 if strict else max(cfg.memory_profile.batch_size or 1, 1)  # a record has the number that was used
    first, last = offset + min(recorded.digests), offset + max(recorded.digests)
    return seeds[first // size * size : first], seeds[last + 1 : (last // size + 1) * size]


def _check_inputs(cfg: DictConfig, recorded: RecordedRun, own_names: set[str]) -> None:
    """Refuses to read a file that the record names, unless its SHA-256 is the recorded one."""
    label = recorded.label
    for name in _INPUT_FILES:
        path = cfg[name]
        if path is None or name in own_names:
            continue
        entry = recorded.record["inputs"].get(name)
        entry = entry if isinstance(entry, dict) else {}
        file = entry.get("file")
        if file is None:
            raise MediaError(
                f"{label}: the {name} was in memory, and a record holds its SHA-256 alone; add {name}=FILE"
            )
        if str(file).startswith(("//", "\\\\")):
            raise MediaError(f"{name}={file}: is on another computer; copy it and add {name}=FILE")
        digest = _file_digest(str(file))
        if digest is None or digest != entry.get("sha256"):
            fault = "there is no such file" if digest is None else "is another file now (its SHA-256 differs)"
            raise MediaError(f"{label}: {name}={file}: {fault}; give what it started from: {name}=FILE")
        cfg[name] = str(file)


def _file_digest(file: str) -> str | None:
    """Returns the SHA-256 of a file, or of a folder of frames; None if there is none, or it cannot be read."""
    with suppress(MediaError, ConfigError):
        return content_sha256(user_path(file)) if is_frames_folder(user_path(file)) else file_sha256(file)
    return None


def _input_notes(inputs: Inputs | None, record: Mapping[str, Any]) -> list[str]:
    """Returns a line for each input file of the user that is not the recorded one."""
    if inputs is None:
        return []
    notes = []
    for name, read in inputs.files.items():
        entry = record["inputs"].get(name)
        recorded = entry.get("sha256") if isinstance(entry, dict) else None
        digests = (read.sha256, read.pixels_sha256) if isinstance(read, InputImage) else (read.sha256,)
        if recorded not in digests:
            notes.append(f"the {name} is not the recorded one: its SHA-256 differs")
    return notes
