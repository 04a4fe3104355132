"""From a record to the request that it was made by, to be run again.

A record may come from a stranger: it is data. It decides what the picture is, within limits; where files are written
and what is tracked is the user's own affair, and a local file is read only if it is the one that was read then.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config import compose as configuration
from diffuse.config import request as validation
from diffuse.config.inputs import Inputs
from diffuse.config.request import Draft
from diffuse.errors import ConfigError, MediaError
from diffuse.media import files as media
from diffuse.media import images as picture_input
from diffuse.record import file as record_file
from diffuse.record.file import Recorded
from diffuse.schema import COMPONENTS, Config, TrackingConfig

# What a record does not decide, and what may be given beside it: fields, or whole groups of them.
_OURS = ("output", "tracking", "report", "objective")
_GROUPS = (*_OURS, "hardware", "memory_profile")
_PICTURES = ("input_image", "mask_image")
_RUN = re.compile(r"[\w-]{8,}")  # what can be a run's id, and has no suffix of a file's
_WEIGHTS = re.compile(rf"(model|refiner)(\.({'|'.join(COMPONENTS)}))?\.(source|revision|variant)|model\.download")

MOST_STEPS = 1000  # what models are trained with; more would only keep this machine busy
_MOST_BATCHED = 64  # pictures denoised together
_LARGEST_NUMBER = 2**31 - 1
_LARGEST_OPTION = 10_000  # of a sampler's whole numbers, which are timesteps, or counts of them


@dataclass(frozen=True)
class Replay:
    """A record as a request. `digests` and `pixels` are by a picture's index in this run, which may be a part of the
    recorded one."""

    recorded: Recorded
    cfg: DictConfig
    drafts: list[Draft]
    overrides: list[str]
    digests: Mapping[int, str]
    pixels: Mapping[int, np.ndarray]
    before: Sequence[int]  # the seeds of those that the pictures were computed together with
    after: Sequence[int]
    notes: list[str]  # what the user should know beforehand, a line each


def asked(target: str, overrides: Sequence[str] = ()) -> Replay:
    """What makes again that which `target` names: a file, or a run in the user's tracking store.

    Raises:
        DiffuseError: there is no such file or run, or as `record_file.read` and `replay` say.
    """
    if not target:
        raise ConfigError("reproduce: make what again? Give a picture, a record.json, a job.json or the id of a run")
    path = Path(target).expanduser()
    if _RUN.fullmatch(target) and not path.exists():
        return replay(_of_store(target, configuration.compose(overrides)), overrides)
    return replay(record_file.read(path), overrides)


def _of_store(name: str, own: DictConfig) -> Recorded:
    """The record of the run `name`, and its pictures."""
    from diffuse.tracking.query import StoreReader  # which brings MLflow

    try:
        reader = StoreReader(cast(TrackingConfig, OmegaConf.to_object(own.tracking)))
    except ConfigError as error:
        raise ConfigError(f"{name}: there is no such file; and as a run: {error}") from error
    run = reader.run(name)
    with tempfile.TemporaryDirectory(prefix="diffuse-") as folder:
        found = reader.record(run, Path(folder))
        pictures = {}
        for path in reader.media(run, Path(folder)):
            with suppress(MediaError):
                index = media.read_record(path).get("image", {}).get("index")
                pictures[index] = path
        return record_file.of_run(found, f"run {name}", pictures)


def replay(recorded: Recorded, overrides: Sequence[str] = ()) -> Replay:
    """What makes the pictures of `recorded` again. `overrides` are the user's own: where to, on what, and
    where a file is that the record names.

    The bits of a picture can depend on what it is computed together with. So the rest of its batch is made too, whether
    that was of the same run or of other jobs of a sweep.

    Raises:
        ConfigError: an override is of something else, or the record asks for what is not possible, or far from usual.
        MediaError: a picture that it started from is not here, or another one.
    """
    for override in overrides:
        name = override.partition("=")[0]
        if name.partition(".")[0] not in _GROUPS and name not in _PICTURES and not _WEIGHTS.fullmatch(name):
            may = ", ".join((*_GROUPS, *_PICTURES, "model.source"))
            raise ConfigError(f"{override}: that is for the record to say; what may be given is of {may}")
    shown = recorded.shown
    own = configuration.compose(overrides)
    given = {override.partition("=")[0] for override in overrides}
    try:
        cfg = _configuration(recorded.record)
        notes = _place(cfg, recorded.record, own, given)
        _limit(cfg)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from None
    for name in _OURS:
        cfg[name] = own[name]
    for name in given:
        if "." in name or name in _PICTURES:
            OmegaConf.update(cfg, name, OmegaConf.select(own, name))
    _check_inputs(cfg, recorded.record, shown, given)
    first = min(recorded.digests)
    before, after = _beside(cfg, recorded)
    cfg.seed, cfg.num_images = cfg.seed + first, len(recorded.digests)
    drafts = validation.drafts(cfg)
    notes += _other_pictures(drafts[0].inputs, recorded.record)
    said = [o for o in recorded.record["overrides"] if _kept(o, given)]
    return Replay(
        recorded,
        cfg,
        drafts,
        [*said, f"seed={cfg.seed}", f"num_images={cfg.num_images}", *overrides],
        {index - first: digest for index, digest in recorded.digests.items()},
        {index - first: pixels for index, pixels in recorded.pixels.items()},
        before,
        after,
        notes,
    )


def _kept(override: str, given: set[str]) -> bool:
    """Whether an override of the recorded run was one of this one too."""
    name = override.partition("=")[0]
    return name.partition(".")[0] not in (*_OURS, "seed", "num_images", "prompt_file") and name not in given


def _configuration(record: Mapping[str, Any]) -> DictConfig:
    """The record's configuration in the types of the schema, whose defaults stand for fields that it does not have."""
    known = {field.name for field in fields(Config)}
    for name in record["config"]:
        if name not in known:
            raise ConfigError(f"{name}: there is no such field; it was made by diffuse {record['diffuse']}")
    values = {name: value for name, value in record["config"].items() if name not in _OURS}
    if "latents" in record["inputs"]:
        raise ConfigError(
            "started from latents given in Python, of which a record holds the SHA-256 alone; make it again "
            "in Python, with the same latents"
        )
    cfg = configuration.from_data(values)
    with configuration.explained():
        validation.check_targets(cfg)
    if cfg.prompt_file is not None:
        raise ConfigError(f"prompt_file={cfg.prompt_file}: a record holds the prompt; refused")
    return cfg


def _place(cfg: DictConfig, record: Mapping[str, Any], own: DictConfig, given: set[str]) -> list[str]:
    """Has `cfg` run where and how the record did: not what `auto` would choose here, but what it chose there."""
    recorded, notes = record["hardware"], []
    with configuration.explained():
        if "hardware" in given:
            cfg.hardware.name, cfg.hardware.device = own.hardware.name, own.hardware.device
        elif recorded.get("device") in ("cpu", "cuda", "mps"):
            cfg.hardware.name = cfg.hardware.device = recorded["device"]
        threads = record["determinism"].get("threads")
        if cfg.hardware.device.name == "cpu" and cfg.hardware.threads is None and isinstance(threads, int):
            cfg.hardware.threads = threads
        # A thread more than there are processors makes nothing faster, and a million of them end the process.
        if cfg.hardware.threads is not None and cfg.hardware.threads > (os.cpu_count() or 1):
            notes.append(f"it was made with {cfg.hardware.threads} threads, and there are {os.cpu_count()} processors")
            cfg.hardware.threads = None
        profile = recorded.get("memory_profile")
        if "memory_profile" in given:
            cfg.memory_profile = own.memory_profile
        elif isinstance(profile, dict):
            cfg.memory_profile = _profile(profile)
        cfg.model.download = own.model.download
        for model, weights in (("model", record["weights"]), ("refiner", record["weights"].get("refiner"))):
            if cfg[model]._target_ is not None:
                _find(cfg, model, weights, given)
                parts = weights.get("components") if isinstance(weights, dict) else None
                for name in COMPONENTS:
                    recorded_part = parts.get(name) if isinstance(parts, dict) else None
                    _find(cfg, f"{model}.{name}", recorded_part, given)
    return notes


def _profile(recorded: Mapping[str, Any]) -> DictConfig:
    """The memory profile that was chosen. How large a picture may be is this machine's own affair."""
    known = configuration.load_group("memory_profile")
    name = recorded.get("name")
    if name not in known:
        raise ConfigError(f"memory_profile={name}: there is no such memory profile; add memory_profile=auto")
    values: DictConfig = configuration.from_data({"memory_profile": recorded}).memory_profile
    values.max_side = known[name].max_side
    return values


def _find(cfg: DictConfig, name: str, weights: Any, given: set[str]) -> None:
    """Where the recorded weights `name` are on this machine: a commit of a repository, a folder, or in the package."""
    node = OmegaConf.select(cfg, name)
    if node.source is None or f"{name}.source" in given:
        return
    recorded, source = weights if isinstance(weights, dict) else {}, str(node.source)
    if source.startswith(("//", "\\\\")):
        raise ConfigError(f"{name}.source={source}: is on another computer; refused; give {name}.source=FOLDER")
    if name == "model" and source != str(configuration.TINY) and not Path(source).expanduser().is_dir():
        ships = recorded.get("sha256") == CheckpointFolder.open(configuration.TINY).digest()
        if ships or (node.name == "tiny" and re.search(r"[/\\]tiny[/\\]checkpoint$", source)):
            node.source = str(configuration.TINY)
            return
    revision = recorded.get("revision")
    if node.revision is None and isinstance(revision, str):
        node.revision = revision


def _limit(cfg: DictConfig) -> None:
    """Refuses what no one's picture needs, and what would keep this machine busy for days or fill its memory."""
    steps, timesteps = cfg.num_inference_steps, cfg.timesteps or ()
    if max(steps or 0, len(timesteps)) > MOST_STEPS:
        raise ConfigError(f"num_inference_steps={steps}: more than {MOST_STEPS}; refused")
    for name in map(str, cfg.scheduler):
        value = cfg.scheduler[name]
        if isinstance(value, int) and abs(value) > _LARGEST_OPTION:
            raise ConfigError(f"scheduler.{name}={value}: more than {_LARGEST_OPTION}; refused")
    for name in map(str, cfg):
        value = cfg[name]
        if isinstance(value, int) and name != "seed" and abs(value) > _LARGEST_NUMBER:
            raise ConfigError(f"{name}={value}: is too large a number; refused")
    if (cfg.memory_profile.batch_size or 1) > _MOST_BATCHED:
        raise ConfigError(
            f"memory_profile.batch_size={cfg.memory_profile.batch_size}: more than {_MOST_BATCHED}; refused"
        )


def _beside(cfg: DictConfig, recorded: Recorded) -> tuple[list[int], list[int]]:
    """The seeds before and after those of the pictures that are meant, in the batches in which they were made."""
    batch = recorded.record.get("batch") or {"seeds": range(cfg.seed, cfg.seed + cfg.num_images), "first": 0}
    seeds, place = list(batch["seeds"]), batch["first"]
    strict = recorded.record["hardware"].get("deterministic") == "strict"
    size = 1 if strict else max(cfg.memory_profile.batch_size or 1, 1)  # of which a record has the number
    first, last = place + min(recorded.digests), place + max(recorded.digests)
    return seeds[first // size * size : first], seeds[last + 1 : (last // size + 1) * size]


def _check_inputs(cfg: DictConfig, record: Mapping[str, Any], shown: str, given: set[str]) -> None:
    """Refuses to read a file that the record names, unless it is the one of which it has the SHA-256."""
    for name in _PICTURES:
        path = cfg[name]
        if path is None or name in given:
            continue
        about = record["inputs"].get(name)
        about = about if isinstance(about, dict) else {}
        if about.get("file") is None:
            raise MediaError(
                f"{shown}: the {name} was in memory, and a record holds its SHA-256 alone; add {name}=FILE"
            )
        if str(about["file"]).startswith(("//", "\\\\")):
            raise MediaError(f"{name}={about['file']}: is on another computer; copy it and add {name}=FILE")
        digest = picture_input.file_sha256(str(about["file"]))
        if digest is None or digest != about.get("sha256"):
            what = "there is no such file" if digest is None else "is another file now (its SHA-256 differs)"
            raise MediaError(f"{shown}: {name}={about['file']}: {what}; give the picture it started from: {name}=FILE")
        cfg[name] = str(about["file"])


def _other_pictures(inputs: Inputs | None, record: Mapping[str, Any]) -> list[str]:
    """A line for each picture that the user gave and that is not the one recorded."""
    if inputs is None:
        return []
    notes = []
    for name, read in (("input_image", inputs.picture), ("mask_image", inputs.mask)):
        about = record["inputs"].get(name)
        recorded = about.get("sha256") if isinstance(about, dict) else None
        if read is not None and recorded not in (read.sha256, read.pixels_sha256):
            notes.append(f"the {name} is not the recorded one: its SHA-256 differs")
    return notes
