"""The sources that a configuration names: the checkpoint of each of its models, and components from other sources."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from omegaconf import DictConfig

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.locate import locate_checkpoints
from diffuse.checkpoints.single_file import SingleFile
from diffuse.checkpoints.source import LocalCheckpoint, Source
from diffuse.config.compose import compose_config
from diffuse.errors import ConfigError
from diffuse.models.single_file.describe import PREDICTIONS
from diffuse.schema import COMPONENTS

_FIELDS = ("source", "revision", "variant")


def model_sources(cfg: DictConfig, models: Mapping[str, Sequence[str]]) -> list[Source]:
    """Returns each model's source, followed by those of its components that have their own.

    Args:
        cfg: the composed configuration.
        models: the models' groups in it, such as `refiner`, each with the component folders that it needs.

    Raises:
        ConfigError: a source is set for a component that the model does not have.
    """
    sources = []
    for group, components in models.items():
        model = cfg[group]
        parts = [name for name in COMPONENTS if model[name].source is not None]
        for name in parts:
            if name not in components:
                has = ", ".join(name for name in COMPONENTS if name in components)
                raise ConfigError(
                    f"{group}.{name}.source={model[name].source}: {group}={model.name} has no {name}; it has {has}"
                )
        own = tuple(name for name in components if name not in parts)
        sources.append(
            Source(model.source, model.revision, model.variant, own, group, fetch_variant=model.fetch_variant)
        )
        for name in parts:
            part = model[name]
            fields = part.source, part.revision, part.variant, (name,), f"{group}.{name}"
            sources.append(Source(*fields, single=True, fetch_variant=part.fetch_variant))
    return sources


def locate_models(cfg: DictConfig, models: Mapping[str, Sequence[str]]) -> list[Checkpoint]:
    """Returns the checkpoint of each model of `cfg`, with its components from other sources as `parts`.

    Raises:
        ConfigError, CheckpointError: as `model_sources` and `locate_checkpoints`.
    """
    located = locate_checkpoints(model_sources(cfg, models), cfg.model.download, _DownloadCommand(cfg))
    return [*with_parts(located, said_prediction(cfg))]


def said_prediction(cfg: DictConfig) -> str | None:
    """Returns the prediction type that the user says the U-Net has; None where the checkpoint says it."""
    said = cfg.scheduler.get("prediction_type")
    return str(said) if said in PREDICTIONS else None


def with_parts(located: Sequence[LocalCheckpoint], prediction_type: str | None = None) -> list[LocalCheckpoint]:
    """Returns the checkpoints of models, each with the components as `parts` that follow it in `located`.

    Args:
        located: a model's checkpoint, then its components'.
        prediction_type: what `said_prediction` returns.
    """
    checkpoints: list[LocalCheckpoint] = []
    for each in located:
        if each.component is None:
            if isinstance(each, SingleFile) and prediction_type is not None:
                each = replace(each, prediction_type=prediction_type)
            checkpoints.append(each)
            continue
        model = checkpoints[-1]
        part = replace(each, model=replace(model, parts={})) if isinstance(each, SingleFile) else each
        checkpoints[-1] = replace(model, parts={**model.parts, each.component: part})
    return checkpoints


class _DownloadCommand:
    """The `diffuse download` command for a configuration, composed only where it is shown."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def __str__(self) -> str:
        words = [f"{group}={self.cfg[group].name}" for group in ("model", "refiner")]
        words = [word for word in words if word != "refiner=none"]
        for field in _FIELDS:  # a preset's revision goes with its source, so the sources come first
            default = compose_config(words)
            words += [
                f"{name}={'null' if value is None else value}"
                for name, value in _values(self.cfg, field)
                if value != dict(_values(default, field))[name]
            ]
        return shlex.join(["diffuse", "download", *words])


def _values(cfg: DictConfig, field: str) -> Iterator[tuple[str, str | None]]:
    """Yields the dotted name and the value of each `field` of a source in the configuration."""
    for group in ("model", "refiner"):
        for prefix, node in ((group, cfg[group]), *((f"{group}.{name}", cfg[group][name]) for name in COMPONENTS)):
            yield f"{prefix}.{field}", node[field]
