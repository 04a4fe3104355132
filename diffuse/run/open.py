"""Opens the pipeline that a configuration asks for, and keeps it for the next run of the process."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast
from weakref import WeakSet

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.model_sources import locate_models
from diffuse.config.groups import load_group
from diffuse.config.request import RequestDraft
from diffuse.device import hardware
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.profile import (
    choose_profile,
    goes_by_prediction,
    lighter_profile,
    model_thresholds,
    without_components,
)
from diffuse.pipelines.families import component_names, load_family, models, replaced_components
from diffuse.pipelines.pipeline import DiffusionPipeline
from diffuse.pipelines.refined import build_pipeline
from diffuse.schema import HardwareConfig, MemoryProfileConfig, TextBackendConfig
from diffuse.text_backends.backend import open_text_backend

if TYPE_CHECKING:
    from diffuse.plan.choose_levers import Choice

MAX_PIPELINES = 2  # that a process keeps, so that a sweep's next job loads nothing


@dataclass(frozen=True)
class OpenPipeline:
    """A pipeline, and what it runs on. No weight has been read yet."""

    pipeline: DiffusionPipeline
    hardware: Hardware
    profile: MemoryProfileConfig
    checkpoints: Sequence[Checkpoint]  # of the model and, where there is one, its refiner
    choice: Choice | None = None  # of the profile, where it was chosen by prediction


_pipelines: OrderedDict[str, DiffusionPipeline] = OrderedDict()
_opened: WeakSet[DiffusionPipeline] = WeakSet()  # a run that waits may hold one that is not kept any more


def open_pipeline(cfg: DictConfig, draft: RequestDraft | None = None) -> OpenPipeline:
    """Finds the checkpoints, checks that their parts fit together and to the profile, and keeps the pipeline.

    Args:
        draft: the request that the pipeline is opened for. Levers are chosen for it; without it none are.

    Raises:
        ConfigError, HardwareError, CheckpointError: they do not.
    """
    hw = hardware.detect(cast(HardwareConfig, OmegaConf.to_object(cfg.hardware)))
    hardware.apply(hw)
    profiles = load_group("memory_profile")
    thresholds = model_thresholds(cfg)
    targets = [model._target_ for model in models(cfg)]
    families = [load_family(target) for target in targets]
    checkpoints = locate_models(cfg, component_names(cfg))
    choice = None
    if draft is not None and goes_by_prediction(cfg, profiles, hw):
        from diffuse.plan.choose_levers import choose_for_draft

        choice = choose_for_draft(cfg, draft, profiles, hw, checkpoints)
    profile = choice.profile if choice else choose_profile(cfg.memory_profile, profiles, thresholds, hw)
    text_backend = open_text_backend(cast(TextBackendConfig, OmegaConf.to_object(cfg.text_backend)))
    if text_backend is not None:
        profile = without_components(profile, replaced_components(cfg))
    identities = [[checkpoint.identity, target] for checkpoint, target in zip(checkpoints, targets, strict=True)]
    key = json.dumps(
        [identities, hw.key, cfg.model.half_dtype, asdict(profile), text_backend and text_backend.key], default=str
    )
    if key in _pipelines:
        _pipelines.move_to_end(key)
    else:
        lighter = lighter_profile(profile, profiles, thresholds)
        components = Memory(profile, hw, cfg.model.half_dtype, lighter)
        _keep(key, build_pipeline(families, checkpoints, components, text_backend))
    pipeline = _pipelines[key]
    pipeline.memory.check()
    return OpenPipeline(pipeline, hw, profile, checkpoints, choice)


def release_others(pipeline: DiffusionPipeline) -> None:
    """Releases the weights of all other pipelines, which a budget has no room for."""
    for other in _opened:
        if other is not pipeline:
            other.memory.release_all()


def close_pipeline(pipeline: DiffusionPipeline) -> None:
    """Releases a pipeline that is not needed any more, and its weights."""
    for key in [key for key, kept in _pipelines.items() if kept is pipeline]:
        _pipelines.pop(key).memory.release_all()


def _keep(key: str, pipeline: DiffusionPipeline) -> None:
    """Keeps `pipeline`. The one not used for longest goes with its weights, before those of the new one are read."""
    while len(_pipelines) >= MAX_PIPELINES:
        _pipelines.popitem(last=False)[1].memory.release_all()
    _pipelines[key] = pipeline
    _opened.add(pipeline)
