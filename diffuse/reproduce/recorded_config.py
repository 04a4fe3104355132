"""Restores the configuration of a record in the types of today's schema, within limits, for this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config.checks import check_targets
from diffuse.config.compose import config_from_data
from diffuse.config.groups import SHIPPED, load_group
from diffuse.config.mistakes import explain_errors
from diffuse.config.request import SET_FIELDS
from diffuse.config.root import Config
from diffuse.device.profile import AUTO
from diffuse.errors import ConfigError
from diffuse.media.images import file_sha256
from diffuse.paths import user_path
from diffuse.schema import COMPONENTS

OWN_GROUPS = ("output", "tracking", "report", "objective")  # of the user, whatever the record says

MAX_STEPS = 1000  # models are trained with as many; more would only keep this machine busy
_MAX_BATCH = 64  # images denoised together
_MAX_NUMBER = 2**31 - 1
_MAX_OPTION = 10_000  # of a sampler's whole numbers, which are timesteps, or counts of them


def restore_config(record: Mapping[str, Any], own: DictConfig, own_names: set[str]) -> tuple[DictConfig, list[str]]:
    """Restores the configuration of a record, with the device and memory profile that were used.

    Args:
        record: a checked record.
        own: the user's own configuration.
        own_names: the names of the user's overrides, whose values are taken from `own`.

    Returns:
        The configuration, and notes for the user, a line each.

    Raises:
        ConfigError: the record asks for something impossible, or far from usual.
    """
    cfg = _configuration(record)
    notes = _restore_hardware(cfg, record, own, own_names)
    _restore_weights(cfg, record, own, own_names)
    _restore_text_backend(cfg, record, own, own_names)
    _check_limits(cfg)
    return cfg, notes


def _configuration(record: Mapping[str, Any]) -> DictConfig:
    """Returns the record's configuration in the types of the schema, with its defaults for fields that it lacks."""
    known = {field.name for field in fields(Config)}
    for name in record["config"]:
        if name not in known:
            raise ConfigError(f"{name}: there is no such field; it was made by diffuse {record['diffuse']}")
    values = {name: value for name, value in record["config"].items() if name not in OWN_GROUPS}
    if isinstance(values.get("memory_profile"), dict):
        values["memory_profile"] = _with_earlier_tiles(values["memory_profile"])
    if "prompt_embeds" in record["inputs"]:
        raise ConfigError(
            "started from prompt embeddings given in Python, of which a record holds the SHA-256 alone; make it again "
            "in Python, with the same embeddings"
        )
    if "latents" in record["inputs"]:
        raise ConfigError(
            "started from latents given in Python, of which a record holds the SHA-256 alone; make it again "
            "in Python, with the same latents"
        )
    cfg = config_from_data(values)
    known_profiles = load_group("memory_profile")
    for group in ("model", "refiner"):
        for name in SET_FIELDS:  # which earlier versions took, and never used
            cfg[group].request_defaults.pop(name, None)
    with explain_errors():
        # A threshold of a profile of the user's, whose folder need not be given here: `auto` cannot choose it.
        for name in [name for name in cfg.model.min_vram_gib if name not in known_profiles]:
            del cfg.model.min_vram_gib[name]
        check_targets(cfg)
    if cfg.prompt_file is not None:
        raise ConfigError(f"prompt_file={cfg.prompt_file}: a record holds the prompt; refused")
    return cfg


def _restore_hardware(cfg: DictConfig, record: Mapping[str, Any], own: DictConfig, own_names: set[str]) -> list[str]:
    """Sets the device and the memory profile to those that the run had, instead of what `auto` would choose here."""
    recorded, notes = record["hardware"], []
    with explain_errors():
        if "hardware" in own_names:
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
        if "memory_profile" in own_names:
            cfg.memory_profile = own.memory_profile
            if "memory_profile.storage" not in own_names and isinstance(profile, dict) and "storage" in profile:
                cfg.memory_profile.storage = profile["storage"]  # it is lossy, as no other field is
        elif isinstance(profile, dict):
            cfg.memory_profile = _profile(profile)
    return notes


def _restore_weights(cfg: DictConfig, record: Mapping[str, Any], own: DictConfig, own_names: set[str]) -> None:
    """Sets where the recorded weights of each model and component are on this machine."""
    with explain_errors():
        cfg.model.download = own.model.download
        for model, weights in (("model", record["weights"]), ("refiner", record["weights"].get("refiner"))):
            if cfg[model]._target_ is not None:
                _locate_weights(cfg, model, weights, own_names)
                parts = weights.get("components") if isinstance(weights, dict) else None
                for name in COMPONENTS:
                    recorded_part = parts.get(name) if isinstance(parts, dict) else None
                    _locate_weights(cfg, f"{model}.{name}", recorded_part, own_names)


def _restore_text_backend(cfg: DictConfig, record: Mapping[str, Any], own: DictConfig, own_names: set[str]) -> None:
    """Sets who encodes the prompts. A service is asked, and a file read, only if the user or its SHA-256 says so."""
    if any(name.partition(".")[0] == "text_backend" for name in own_names):
        cfg.text_backend = own.text_backend
        return
    name, file = str(cfg.text_backend.name), cfg.text_backend.file
    ways = "add text_backend=auto to encode the prompt here, or text_backend="
    if name == "api":
        raise ConfigError(f"was made with embeddings of a text service; {ways}api text_backend.url=URL to ask one")
    if name == "precomputed":
        part = record.get("text_backend")
        recorded = part.get("sha256") if isinstance(part, Mapping) else None
        if file is None or recorded is None or file_sha256(file) != recorded:
            raise ConfigError(
                f"was made with the embeddings in {file}, which is not here or is another file; {ways}precomputed "
                "text_backend.file=FILE"
            )


def _profile(recorded: Mapping[str, Any]) -> DictConfig:
    """Returns the memory profile that was chosen. The largest size of an image depends on this machine."""
    known = load_group("memory_profile")
    name = recorded.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
        raise ConfigError(f"memory_profile={name}: there is no such memory profile; add memory_profile=auto")
    values: DictConfig = config_from_data({"memory_profile": _with_earlier_tiles(recorded)}).memory_profile
    here = known[name if name in known else AUTO]  # it may be one of the user's own files
    values.max_side, values.max_frames, values.max_film_size = here.max_side, here.max_frames, here.max_film_size
    values.budget_gib = values.host_gib = None  # they were of the machine that it was made on
    return values


def _with_earlier_tiles(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a memory profile with the tiles that version 0.1 had, where it is of that version."""
    earlier = {"vae_tile_size": 64, "vae_tile_overlap": 16}
    tiled = profile.get("tiled_decode") is True and "vae_tile_size" not in profile
    return {**(earlier if tiled else {}), **profile}


def _locate_weights(cfg: DictConfig, name: str, weights: Any, own_names: set[str]) -> None:
    """Sets where the weights `name` are on this machine: a commit of a repository, a folder, or in the package."""
    node = OmegaConf.select(cfg, name)
    if node.source is None or f"{name}.source" in own_names:
        return
    recorded, source = weights if isinstance(weights, dict) else {}, str(node.source)
    if source.startswith(("//", "\\\\")):
        raise ConfigError(f"{name}.source={source}: is on another computer; refused; give {name}.source=FOLDER")
    if name == "model" and not user_path(source, f"{name}.source").is_dir():
        digest = recorded.get("sha256")
        for preset, shipped in SHIPPED.items():
            there = node.name == preset and re.search(rf"[/\\]{shipped.parent.name}[/\\]{shipped.name}$", source)
            if there or (digest and digest == CheckpointFolder.open(shipped).digest()):
                node.source = str(shipped)
                return
    node.fetch_variant = None  # only what the run read
    if node.variant is None and isinstance(recorded.get("variant"), str):
        node.variant = recorded["variant"]
    revision = recorded.get("revision")
    if node.revision is None and isinstance(revision, str):
        node.revision = revision


def _check_limits(cfg: DictConfig) -> None:
    """Refuses numbers that no image needs, and that would keep this machine busy for days or fill its memory."""
    steps = cfg.num_inference_steps
    if max(steps or 0, len(cfg.timesteps or ()), len(cfg.sigmas or ())) > MAX_STEPS:
        raise ConfigError(f"num_inference_steps={steps}: more than {MAX_STEPS}; refused")
    for name in map(str, cfg.scheduler):
        value = cfg.scheduler[name]
        if isinstance(value, int) and abs(value) > _MAX_OPTION:
            raise ConfigError(f"scheduler.{name}={value}: more than {_MAX_OPTION}; refused")
    for name in map(str, cfg):
        value = cfg[name]
        if isinstance(value, int) and name != "seed" and abs(value) > _MAX_NUMBER:
            raise ConfigError(f"{name}={value}: is too large a number; refused")
    if (cfg.memory_profile.batch_size or 1) > _MAX_BATCH:
        raise ConfigError(f"memory_profile.batch_size={cfg.memory_profile.batch_size}: more than {_MAX_BATCH}; refused")
