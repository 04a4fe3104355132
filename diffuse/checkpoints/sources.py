"""Where a configuration's weights come from: a model's checkpoint, its refiner's, and components from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints import locate as hub
from diffuse.checkpoints.folder import Checkpoint
from diffuse.checkpoints.hub.repository import Wanted
from diffuse.config.compose import compose_config
from diffuse.errors import ConfigError
from diffuse.schema import COMPONENTS

_FIELDS = ("source", "revision", "variant")


def wanted(cfg: DictConfig, models: Mapping[str, Sequence[str]]) -> list[Wanted]:
    """What is needed for the `models` of `cfg`, group -> component folders: of each the checkpoint, then what comes
    from elsewhere.

    Raises:
        ConfigError: a source is given for a component that the model has not.
    """
    found = []
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
        found.append(Wanted(model.source, model.revision, model.variant, own, group))
        for name in parts:
            part = model[name]
            found.append(Wanted(part.source, part.revision, part.variant, (name,), f"{group}.{name}", alone=True))
    return found


def locate(cfg: DictConfig, models: Mapping[str, Sequence[str]]) -> list[Checkpoint]:
    """The checkpoint of each of the `models` of `cfg`, with its components from elsewhere.

    Raises:
        ConfigError, CheckpointError: see `wanted` and `hub.locate`.
    """
    found: list[Checkpoint] = []
    for checkpoint in hub.locate(wanted(cfg, models), cfg.model.download, _Command(cfg)):
        if checkpoint.component is None:
            found.append(checkpoint)
        else:
            found[-1] = replace(found[-1], elsewhere={**found[-1].elsewhere, checkpoint.component: checkpoint})
    return found


def as_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint is, for the record; `components` has those that come from elsewhere."""
    parts = {name: as_record(part) for name, part in checkpoint.elsewhere.items()}
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "variant": checkpoint.variant,
        "sha256": checkpoint.digest(),
    } | ({"components": parts} if parts else {})


def tag(weights: Mapping[str, Any]) -> str:
    """The recorded weights in one line: the model's `source@sha256`, then what comes from elsewhere with its name."""
    parts = [f"{name}={tag(part)}" for name, part in weights.get("components", {}).items()]
    refiner = [f"refiner={tag(weights['refiner'])}"] if "refiner" in weights else []
    return "; ".join([f"{weights['source']}@{weights['sha256']}", *parts, *refiner])


class _Command:
    """`diffuse download` for what a configuration asks for, made out only where it is shown."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def __str__(self) -> str:
        words = [f"{group}={self.cfg[group].name}" for group in ("model", "refiner")]
        words = [word for word in words if word != "refiner=none"]
        for field in _FIELDS:  # a preset's revision goes with its source, so the sources are said first
            plain = compose_config(words)
            words += [
                f"{name}={'null' if value is None else value}"
                for name, value in _leaves(self.cfg, field)
                if value != dict(_leaves(plain, field))[name]
            ]
        return shlex.join(["diffuse", "download", *words])


def _leaves(cfg: DictConfig, field: str) -> Iterator[tuple[str, str | None]]:
    """Each `field` that says where weights come from, by its dotted name."""
    for group in ("model", "refiner"):
        for prefix, node in ((group, cfg[group]), *((f"{group}.{name}", cfg[group][name]) for name in COMPONENTS)):
            yield f"{prefix}.{field}", node[field]
