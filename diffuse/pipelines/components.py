"""The components of a model family: one table of roles, networks and renames that each family declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.weights import check_weights, load_weights
from diffuse.device.memory import Memory
from diffuse.layers.quantized import Quantization
from diffuse.models.full_precision import FULL_PRECISION
from diffuse.schema import Storage


class Role(Enum):
    """The part that a component has in a pipeline, whatever its folder is called."""

    denoiser = "denoiser"
    image_codec = "image codec"
    video_codec = "video codec"
    sound_codec = "sound codec"
    vocoder = "vocoder"
    text_encoder = "text encoder"
    text_connectors = "text connectors"
    tokenizer = "tokenizer"
    upsampler = "latent upsampler"


@dataclass(frozen=True)
class Component:
    """One component of a family. A tokenizer has no network."""

    role: Role
    module: type[nn.Module] | None = None
    config: type[Any] | None = None  # the dataclass of its `config.json`
    rename: Callable[[str], str | None] = lambda key: key  # published key -> the module's; None for one not used
    others: Mapping[str, Component] = field(default_factory=dict)  # in its place, by the class that a checkpoint names


Components = Mapping[str, Component]
"""The components of a family by the names of their folders in a checkpoint."""


def with_role(components: Components, role: Role) -> list[str]:
    """Returns the names of the components that have `role`, in the table's order."""
    return [name for name, component in components.items() if component.role is role]


def choose_components(components: Components, checkpoint: Checkpoint) -> Components:
    """Returns the components with those networks that a checkpoint names, where the table has several in one place."""
    return {
        name: component.others.get(str(checkpoint.part(name).config(name).get("_class_name")), component)
        if component.others
        else component
        for name, component in components.items()
    }


def read_configs(components: Components, checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads the architecture of each component that has a network.

    Raises:
        CheckpointError: a `config.json` is missing, or asks for something that is not implemented.
    """
    configs = {}
    for name, component in components.items():
        if component.config is not None:
            part = checkpoint.part(name)
            configs[name] = read_architecture(
                component.config, part.config(name), str(part.path(f"{name}/config.json"))
            )
    return configs


def component_quantization(component: Component, storage: Storage) -> Quantization | None:
    """Returns how a component's weights are stored; None where they are stored as they are computed with."""
    module = component.module
    if storage is Storage.full or module is None or module.__name__ not in FULL_PRECISION:
        return None
    return Quantization(storage, FULL_PRECISION[module.__name__])


def declare(
    name: str, component: Component, config: Any, checkpoint: Checkpoint, memory: Memory, *, float32: bool = False
) -> None:
    """Declares a component to `memory`, which reads its weights when it is first used.

    The headers of the files are checked now: a mismatch would otherwise end a run that is recorded already.

    Args:
        float32: the component never runs in half precision.

    Raises:
        CheckpointError: the weights are not those of `config`.
    """
    module, part = component.module, checkpoint.part(name)
    assert module is not None
    quantization = component_quantization(component, memory.profile.storage)

    def build() -> nn.Module:
        return module(config)

    def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
        return load_weights(
            build, part, name, device=device, dtype=dtype, rename=component.rename, quantization=quantization
        )

    if memory.reads_weights:
        check_weights(build, part, name, rename=component.rename)
    blocks = getattr(module, "streamed_blocks", ())
    memory.add(
        name, load, float32=float32, tileable=component.role in (Role.image_codec, Role.video_codec), blocks=blocks
    )
