"""What denoising starts from: noise, a picture noised part of the way, or a picture that is painted into.

Each start draws from an image's generator in the order of the field's reference, diffusers' pipelines, so that a seed
gives the same picture: first the latents of the input, then the noise, then the latents of the masked input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffuse.sampling.denoise import Sampler, Walk, initial_noise
from diffuse.sampling.guidance import Predict
from diffuse.schedulers.sampler import State

Generators = Sequence[torch.Generator]  # one an image
Draw = Callable[[Generators], Tensor]
"""Latents `[B, C, h, w]` of a picture, drawn from the encoder's distribution and scaled for the denoiser."""


class Begun(NamedTuple):
    """A batch, ready to be denoised."""

    latents: Tensor  # [B, C, h, w], as noisy as the sampler's first timestep has them
    walk: Walk
    seen: Callable[[Predict], Predict] = lambda model: model  # the denoiser, shown more than the latents


class Start(Protocol):
    def begin(self, sampler: Sampler, generators: Generators, noise: Tensor | None) -> Begun:
        """Draws what the batch starts from. `sampler` has its timesteps; `noise` `[B, C, h, w]` is drawn where None."""


@dataclass(frozen=True)
class FromNoise:
    """A prompt alone. `shape` is `[C, h, w]`."""

    shape: Sequence[int]

    def begin(self, sampler: Sampler, generators: Generators, noise: Tensor | None) -> Begun:
        """See `Start`."""
        noise = initial_noise(self.shape, generators) if noise is None else noise
        return Begun(noise * sampler.init_noise_sigma, sampler)


@dataclass(frozen=True)
class FromPicture:
    """Image-to-image (Meng et al., "SDEdit", 2022): the picture, noised as the first timestep asks.

    `pure` starts from noise alone. The reference does not: even at its largest strength it leaves in the start what
    the first timestep has of signal.
    """

    picture: Draw
    pure: bool

    def begin(self, sampler: Sampler, generators: Generators, noise: Tensor | None) -> Begun:
        """See `Start`."""
        original = self.picture(generators)
        noise = _noise_like(original, generators, noise)
        return Begun(_noised(sampler, original, noise, self.pure), sampler)


@dataclass(frozen=True)
class Inpaint:
    """Painting into a picture with any denoiser: after each step what is known is put back, noised alike.

    Source: Lugmayr et al., "RePaint", 2022, equation 8, without the resampling. `mask` `[1, 1, h, w]` is 1 where the
    picture is painted anew and 0 where it is known.
    """

    picture: Draw
    mask: Tensor
    pure: bool

    def begin(self, sampler: Sampler, generators: Generators, noise: Tensor | None) -> Begun:
        """See `Start`."""
        original = self.picture(generators)
        noise = _noise_like(original, generators, noise)
        initial_noise(original.shape[1:], generators)  # of the masked input: what follows is drawn after it
        return Begun(_noised(sampler, original, noise, self.pure), _PutBack(sampler, original, noise, self.mask))


@dataclass(frozen=True)
class InpaintingModel:
    """Painting with a denoiser trained for it, which is shown the mask and the masked picture beside the latents.

    Source: the inpainting model of Rombach et al., 2022, section 4.5, as Stable Diffusion publishes it: the channels
    are latents, mask, latents of the picture with grey under the mask.
    """

    start: Start  # of the latents themselves
    masked: Draw
    mask: Tensor  # see `Inpaint`

    def begin(self, sampler: Sampler, generators: Generators, noise: Tensor | None) -> Begun:
        """See `Start`."""
        latents, walk, _ = self.start.begin(sampler, generators, noise)
        masked = self.masked(generators)
        beside = torch.cat([self.mask.expand(len(masked), -1, -1, -1), masked], dim=1)  # [B, 1 + C, h, w]
        return Begun(latents, walk, lambda model: _shown(model, beside))


class _PutBack:
    """A sampler's walk on which the known part of the picture is put back after each step."""

    def __init__(self, sampler: Sampler, original: Tensor, noise: Tensor, mask: Tensor) -> None:
        self.timesteps = sampler.timesteps
        self.scale_model_input = sampler.scale_model_input
        self.sampler, self.original, self.noise, self.mask = sampler, original, noise, mask

    def step(self, model_output: Tensor, index: int, state: State, generators: Generators | None) -> State:
        state = self.sampler.step(model_output, index, state, generators)
        last = index + 1 == len(self.timesteps)
        known = self.original if last else self.sampler.add_noise(self.original, self.noise, index + 1)
        return state._replace(sample=(1 - self.mask) * known + self.mask * state.sample)


def _noised(sampler: Sampler, original: Tensor, noise: Tensor, pure: bool) -> Tensor:
    return noise * sampler.init_noise_sigma if pure else sampler.add_noise(original, noise, 0)


def _noise_like(original: Tensor, generators: Generators, given: Tensor | None) -> Tensor:
    return (initial_noise(original.shape[1:], generators) if given is None else given).to(original)


def _shown(model: Predict, beside: Tensor) -> Predict:
    def predict(latents: Tensor, timestep: Tensor, /, *, copies: int, **conditioning: Tensor) -> Tensor:
        return model(torch.cat([latents, beside.to(latents)], dim=1), timestep, copies=copies, **conditioning)

    return predict
