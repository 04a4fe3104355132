"""SDE-DPM-Solver++, singlestep of second order (Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models", 2022; in this form from Crowson's k-diffusion, `sample_dpmpp_sde`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.midpoint import MidpointSampler
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import ancestral_split


@dataclass(kw_only=True)
class DPMppSDE(MidpointSampler):
    """Goes half a step with fresh noise, and then the whole step with the original as it is seen from there.

    The noise of the whole step holds that of its half: both are increments of one Brownian motion in sigma. The
    originals draw it from a tree of seeds; here each image's generator gives the two increments of a step in turn.
    """

    label: ClassVar[str] = "DPM++ SDE"

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes half a step: to the sigma between, or the whole way with the original that was found there.

        Args:
            model_output: `[B, ...]`, for what the model was shown of `state` at step `index`.
            index: of the call among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; the noise comes from them.
        """
        original = self.to_original(model_output, index, state.sample)
        sigma, after = self.sigmas[index : index + 2]
        if after == 0:
            return State(original, original)
        if generators is None:
            raise ValueError("new noise needs the images' generators")
        increment = noise_schedule.unit_noise(state.sample, generators).mul_((sigma - after) ** 0.5)
        if not state.past:
            sample, moved = self._travel(state.sample, original, increment, sigma, after), increment
            return State(sample, original, (state.sample, moved))
        start, moved = state.past
        return State(self._travel(start, original, moved + increment, self.sigmas[index - 1], after), original)

    def _travel(self, sample: Tensor, original: Tensor, increment: Tensor, sigma: float, after: float) -> Tensor:
        """Returns a sample at `after` from one at `sigma`; tensors are `[B, ...]`.

        `increment` is of the Brownian motion between the two, of variance `sigma - after`.
        """
        down, up = ancestral_split(sigma, after)
        weights = down / sigma, 1 - down / sigma, up / (sigma - after) ** 0.5 if sigma > after else 0.0
        return noise_schedule.weighted_sum(weights, (sample, original, increment))
