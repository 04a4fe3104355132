"""Prompt embeddings that a Python program gives in place of prompts, or gets to change them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from diffuse.errors import ConfigError


@dataclass(frozen=True)
class PromptEmbeddings:
    """The text states of a prompt and a negative prompt. `pooled_...` are SDXL's; None elsewhere."""

    prompt_embeds: Tensor  # [1, T, D]
    negative_prompt_embeds: Tensor | None = None  # [1, T, D]
    pooled_prompt_embeds: Tensor | None = None  # [1, D']
    negative_pooled_prompt_embeds: Tensor | None = None  # [1, D']

    def as_arguments(self) -> dict[str, Tensor]:
        """Returns those that there are by name, as the functions that make pictures take them."""
        return {name: value for name in EMBEDDINGS if (value := getattr(self, name)) is not None}

    def as_record(self) -> dict[str, Any]:
        """Returns shape and SHA-256 of each, for the record."""
        return {
            name: {"sha256": hashlib.sha256(value.numpy().tobytes()).hexdigest(), "shape": list(value.shape)}
            for name, value in self.as_arguments().items()
        }


EMBEDDINGS = tuple(field.name for field in fields(PromptEmbeddings))


def read_embeddings(values: Mapping[str, Any]) -> PromptEmbeddings | None:
    """Returns embeddings, given as tensors or arrays, in float32 on the CPU; None where there are none.

    Raises:
        ConfigError: one is not of numbers, or there are some and no `prompt_embeds`.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return None
    if "prompt_embeds" not in given:
        raise ConfigError(f"{next(iter(given))}: goes with prompt_embeds, which are not given")
    tensors = {}
    for name, value in given.items():
        try:
            tensors[name] = torch.as_tensor(value).detach().to("cpu", torch.float32).clone().contiguous()
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"{name}: should be a tensor or an array, not {type(value).__name__}") from None
        if not torch.isfinite(tensors[name]).all():
            raise ConfigError(f"{name}: holds NaN or an infinity")
    return PromptEmbeddings(**tensors)


def check_embeddings(embeddings: PromptEmbeddings, *, width: int, pooled_width: int | None, guided: bool) -> None:
    """Checks the shapes against what the denoiser takes.

    Args:
        width: of the states that it attends to.
        pooled_width: of the pooled text; None where it takes none.
        guided: whether there is guidance, which needs the negative embeddings too.

    Raises:
        ConfigError: one has another shape, is missing, or is not of this model.
    """
    first = embeddings.prompt_embeds
    shape = tuple(first.shape)
    if first.ndim != 3 or shape[0] != 1 or shape[1] < 1 or shape[2] != width:
        raise ConfigError(f"prompt_embeds are {shape}; this model takes (1, tokens, {width})")
    for name, value in embeddings.as_arguments().items():
        if "pooled" in name:
            if pooled_width is None:
                raise ConfigError(f"{name}: this model takes no pooled text; leave it out")
            if tuple(value.shape) != (1, pooled_width):
                raise ConfigError(f"{name} are {tuple(value.shape)}; this model takes (1, {pooled_width})")
        elif value.shape != first.shape:
            raise ConfigError(f"{name} are {tuple(value.shape)} and prompt_embeds {shape}; they need the same shape")
    needed = ["negative_prompt_embeds"] if guided else []
    if pooled_width is not None:
        needed += ["pooled_prompt_embeds", *(["negative_pooled_prompt_embeds"] if guided else [])]
    for name in needed:
        if getattr(embeddings, name) is None:
            way = ", or guidance_scale=1" if name.startswith("negative") else ""
            raise ConfigError(f"{name}: is needed beside prompt_embeds; give it, as encode() does{way}")
