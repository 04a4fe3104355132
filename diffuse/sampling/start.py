"""The state that denoising starts from: noise, an image noised part of the way, or an image with a masked region.

Each start draws from an image's generator in the order of the field's reference, diffusers' pipelines, so that a seed
gives the same image: first the latents of the input, then the noise, then the latents of the masked input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffuse.sampling.denoise import Sampler, Stepper, initial_noise
from diffuse.sampling.guidance import Denoiser
from diffuse.schedulers.sampler import State

Generators = Sequence[torch.Generator]  # one for each result
DrawLatents = Callable[[Generators], Tensor]
"""Draws latents `[B, C, h, w]` of an image from the encoder's distribution, scaled for the denoiser."""


class InitialState(NamedTuple):
    """A batch, ready to be denoised."""

    latents: Tensor  # [B, ...], as noisy as the stepper's first timestep asks
    stepper: Stepper
    wrap: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser  # adds to the denoiser's input


class Start(Protocol):
    """How the batches of a request begin."""

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """Draws the state that a batch starts from.

        Args:
            sampler: with its timesteps set.
            generators: one for each result of the batch.
            latents: `[B, ...]`, initial noise of unit variance; drawn where it is None.
        """


@dataclass(frozen=True)
class FromNoise:
    """Starts from noise: a prompt alone. `shape` is `[C, h, w]`."""

    shape: Sequence[int]

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`."""
        noise = initial_noise(self.shape, generators) if latents is None else latents
        return InitialState(noise * sampler.init_noise_sigma, sampler)


@dataclass(frozen=True)
class FromLatents:
    """Goes on from the latents that an earlier stage left, with the noise that is still in them."""

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`; `latents` are those of the stage before."""
        assert latents is not None
        return InitialState(latents, sampler)


@dataclass(frozen=True)
class UntilCall:
    """Ends the way of another start after `calls` calls of the denoiser; a later stage goes on from there."""

    start: Start
    calls: int

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`."""
        state = self.start.begin(sampler, generators, latents)
        return state._replace(stepper=_FirstCalls(state.stepper, self.calls))


@dataclass(frozen=True)
class FromImage:
    """Image-to-image (Meng et al., "SDEdit", 2022): starts from an image, noised as the first timestep asks.

    `pure_noise` starts from noise alone. The reference does not: even at its largest strength it leaves in the start
    the share of signal that the first timestep has.
    """

    image: DrawLatents
    pure_noise: bool

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`."""
        original = self.image(generators)
        noise = _noise_like(original, generators, latents)
        return InitialState(_add_initial_noise(sampler, original, noise, self.pure_noise), sampler)


@dataclass(frozen=True)
class Inpaint:
    """Inpainting with any denoiser: after each step the known region is put back, with the noise of that step.

    Source: Lugmayr et al., "RePaint", 2022, equation 8, without the resampling. `mask` `[1, 1, h, w]` is 1 where the
    image is painted anew and 0 where it is known.
    """

    image: DrawLatents
    mask: Tensor
    pure_noise: bool

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`."""
        original = self.image(generators)
        noise = _noise_like(original, generators, latents)
        initial_noise(original.shape[1:], generators)  # for the masked input in the reference: later draws follow it
        stepper = _KeepKnownRegion(sampler, original, noise, self.mask)
        return InitialState(_add_initial_noise(sampler, original, noise, self.pure_noise), stepper)


@dataclass(frozen=True)
class InpaintingModel:
    """Inpainting with a denoiser trained for it, which takes the mask and the masked image beside the latents.

    Source: the inpainting model of Rombach et al., 2022, section 4.5, as Stable Diffusion publishes it: the channels
    are latents, mask, latents of the image with grey under the mask.
    """

    start: Start  # of the latents themselves
    masked_image: DrawLatents
    mask: Tensor  # see `Inpaint`

    def begin(self, sampler: Sampler, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`."""
        state = self.start.begin(sampler, generators, latents)
        masked = self.masked_image(generators)
        extra = torch.cat([self.mask.expand(len(masked), -1, -1, -1), masked], dim=1)  # [B, 1 + C, h, w]
        return state._replace(wrap=lambda denoiser: _with_channels(denoiser, extra))


class _KeepKnownRegion:
    """Steps of a sampler after each of which the known region of the image is put back."""

    def __init__(self, sampler: Sampler, original: Tensor, noise: Tensor, mask: Tensor) -> None:
        self.timesteps = sampler.timesteps
        self.scale_model_input = sampler.scale_model_input
        self.sampler, self.original, self.noise, self.mask = sampler, original, noise, mask

    def step(self, model_output: Tensor, index: int, state: State, generators: Generators | None) -> State:
        state = self.sampler.step(model_output, index, state, generators)
        last = index + 1 == len(self.timesteps)
        known = self.original if last else self.sampler.add_noise(self.original, self.noise, index + 1)
        return state._replace(sample=(1 - self.mask) * known + self.mask * state.sample)


class _FirstCalls:
    """The first `calls` calls of a stepper."""

    def __init__(self, stepper: Stepper, calls: int) -> None:
        self.timesteps = stepper.timesteps[:calls]
        self.scale_model_input = stepper.scale_model_input
        self.step = stepper.step


def _add_initial_noise(sampler: Sampler, original: Tensor, noise: Tensor, pure_noise: bool) -> Tensor:
    return noise * sampler.init_noise_sigma if pure_noise else sampler.add_noise(original, noise, 0)


def _noise_like(original: Tensor, generators: Generators, noise: Tensor | None) -> Tensor:
    return (initial_noise(original.shape[1:], generators) if noise is None else noise).to(original)


def _with_channels(denoiser: Denoiser, extra: Tensor) -> Denoiser:
    """Adds the channels `extra` `[B, X, h, w]` to the denoiser's input."""

    def predict(latents: Tensor, timestep: Tensor, /, *, copies: int, **conditioning: Tensor) -> Tensor:
        return denoiser(torch.cat([latents, extra.to(latents)], dim=1), timestep, copies=copies, **conditioning)

    return predict
