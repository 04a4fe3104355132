"""Opens the pipeline that a configuration asks for, and keeps it for the next run of the process."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.model_sources import locate_models
from diffuse.config.compose import load_group
from diffuse.device import hardware
from diffuse.device import memory as memory_profile
from diffuse.device.hardware import Hardware
from diffuse.errors import ConfigError
from diffuse.pipelines.refined import staged
from diffuse.schema import HardwareConfig, MemoryProfileConfig

KEPT = 2  # pipelines that a process keeps, so that a sweep's next job loads nothing


@dataclass(frozen=True)
class Opened:
    """A pipeline, and what it runs on. No weight has been read yet."""

    pipeline: Any
    hardware: Hardware
    profile: MemoryProfileConfig
    checkpoints: Sequence[Checkpoint]  # of the model and, where there is one, its refiner


_pipelines: OrderedDict[str, Any] = OrderedDict()


def open_pipeline(cfg: DictConfig) -> Opened:
    """Finds the checkpoints, checks that their parts fit together and to the profile, and keeps the pipeline.

    Raises:
        ConfigError, HardwareError, CheckpointError: they do not.
    """
    hw = hardware.detect(cast(HardwareConfig, OmegaConf.to_object(cfg.hardware)))
    hardware.apply(hw)
    profiles = load_group("memory_profile")
    thresholds = {str(name): float(need) for name, need in cfg.model.min_vram_gib.items()}
    profile = memory_profile.choose(cfg.memory_profile, profiles, thresholds, hw)

    models = stages(cfg)
    families = [family(model._target_) for model in models]
    checkpoints = locate_models(cfg, folders(cfg))
    identities = [[checkpoint.identity, model._target_] for checkpoint, model in zip(checkpoints, models, strict=True)]
    key = json.dumps([identities, hw.key, cfg.model.half_dtype, asdict(profile)], default=str)
    pipeline = _kept(key)
    if pipeline is None:
        instead = memory_profile.lighter(profile, profiles, thresholds)
        memory = memory_profile.Memory(profile, hw, cfg.model.half_dtype, instead)
        pipeline = _keep(key, staged(families, checkpoints, memory))
    pipeline.memory.check()
    return Opened(pipeline, hw, profile, checkpoints)


def forget(pipeline: Any) -> None:
    """Lets go of a pipeline that is not needed any more, and of its weights."""
    for key in [key for key, kept in _pipelines.items() if kept is pipeline]:
        _pipelines.pop(key).memory.release_all()


def stages(cfg: DictConfig) -> list[DictConfig]:
    """The models that make a picture, one after the other."""
    return [cfg.model] if cfg.refiner._target_ is None else [cfg.model, cfg.refiner]


def folders(cfg: DictConfig) -> dict[str, tuple[str, ...]]:
    """By its group, what each of the models that make a picture needs of a checkpoint."""
    names = ("model", "refiner")
    return {
        name: (*family(model._target_).components, "scheduler") for name, model in zip(names, stages(cfg), strict=False)
    }


def family(target: str) -> Any:
    """The pipeline class that `model._target_` names; `validation` has seen that it is in diffuse.pipelines."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        found = None
    if not isinstance(found, type) or found.__module__ != module or not hasattr(found, "components"):
        raise ConfigError(f"model._target_={target}: there is no such pipeline; conf/model has those there are")
    return found


def _kept(key: str) -> Any:
    if key in _pipelines:
        _pipelines.move_to_end(key)
    return _pipelines.get(key)


def _keep(key: str, pipeline: Any) -> Any:
    """Keeps `pipeline`; the one not used for longest goes, and its weights with it, before the new one's are read."""
    while len(_pipelines) >= KEPT:
        _pipelines.popitem(last=False)[1].memory.release_all()
    _pipelines[key] = pipeline
    return pipeline
