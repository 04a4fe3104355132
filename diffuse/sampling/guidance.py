"""Guidance: the conditioning of a denoiser, and how far its prediction is taken towards it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffuse.layers.embeddings import sinusoidal_embedding

Conditioning = Mapping[str, Tensor]
"""Arguments of the denoiser by name, `[1, ...]` each. Only the pipeline that makes them knows their meaning."""


class Denoiser(Protocol):
    """A denoiser: latents `[B, ...]`, a timestep and the conditioning -> a prediction.

    The latents `[B / copies, ...]` stand there `copies` times, one after the other. Of the conditioning `[G, ...]`,
    each entry holds for `B / G` neighbours.
    """

    def __call__(self, latents: Tensor, timestep: Tensor, /, *, copies: int, **conditioning: Tensor) -> Tensor: ...


class Guidance(Protocol):
    """Makes one prediction of those that guidance compares. A family may have its own, which calls its denoiser in its
    own way."""

    def predict(self, model: Any, latents: Tensor, timestep: Tensor) -> Tensor:
        """Returns the guided prediction for latents `[B, ...]`, of their shape."""


class ClassifierFreeGuidance(NamedTuple):
    """Classifier-free guidance: `scale` times the way from the negative prediction to the positive one.

    `rescale`, from 0 to 1, brings the result's standard deviation back towards the positive prediction's: a large scale
    drives images of models without signal at the last timestep into overexposure.

    Sources: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022; for `rescale`, Lin et al., "Common Diffusion
    Noise Schedules and Sample Steps are Flawed", 2023, section 3.4.
    """

    positive: Conditioning
    negative: Conditioning | None  # None: guidance would change nothing
    scale: float
    batched: bool  # both in one call of the model, or one after the other with half the memory
    rescale: float = 0.0

    def predict(self, model: Denoiser, latents: Tensor, timestep: Tensor) -> Tensor:
        """Returns the guided prediction for latents `[B, ...]`, of their shape and in the model's precision."""
        if self.negative is None:
            return model(latents, timestep, copies=1, **self.positive)
        if self.batched:
            both = {name: torch.cat([self.negative[name], value]) for name, value in self.positive.items()}
            negative, positive = model(latents, timestep, copies=2, **both).chunk(2)
        else:
            negative = model(latents, timestep, copies=1, **self.negative)
            positive = model(latents, timestep, copies=1, **self.positive)
        guided = negative + self.scale * (positive - negative)
        return _rescaled(guided, positive, self.rescale) if self.rescale else guided


def in_parts(model: Denoiser, limit: Callable[[], int | None]) -> Denoiser:
    """Returns a denoiser that calls `model` with at most `limit` results at once, where there is a limit.

    The conditioning must be the same for all results.
    """

    def predict(latents: Tensor, timestep: Tensor, /, *, copies: int, **conditioning: Tensor) -> Tensor:
        parts = latents.split(limit() or len(latents))
        if len(parts) == 1:
            return model(latents, timestep, copies=copies, **conditioning)
        # [copies * b, ...] of each part: the copies stand one after the other in the whole.
        predicted = [model(part, timestep, copies=copies, **conditioning).chunk(copies) for part in parts]
        return torch.cat([part[copy] for copy in range(copies) for part in predicted])

    return predict


def embedded_scale(scale: float, width: int) -> Tensor:
    """Embeds a guidance scale as `[1, width]`, for a denoiser distilled from guided predictions.

    Such a denoiser needs no negative prediction.

    Source: Meng et al., "On Distillation of Guided Diffusion Models", 2023, as used by Luo et al., "Latent Consistency
    Models", 2023: in thousandths, and counted from 1.
    """
    return sinusoidal_embedding(torch.tensor([(scale - 1) * 1000]), width, flip_sin_to_cos=False, freq_shift=1)


def _rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    dims = tuple(range(1, guided.ndim))
    ratio = positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True)  # [B, 1, ...]
    return share * (guided * ratio) + (1 - share) * guided
