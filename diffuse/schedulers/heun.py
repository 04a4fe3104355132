"""Heun's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VarianceExploding


@dataclass(kw_only=True)
class Heun(VarianceExploding):
    """An Euler step to the next sigma, then the same step again with the mean of the slopes at both its ends.

    Every step but the last calls the model twice.
    """

    label: ClassVar[str] = "Heun"

    beta_start: float = 0.00085
    beta_end: float = 0.012
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    # Not taken from a checkpoint, as in the reference: on the way from no signal at all, the change of the original
    # between the ends of a step is multiplied by the fall of sigma there, by hundreds.
    rescale_betas_zero_snr: bool = field(default=False, init=False)

    calls_per_step: ClassVar[int] = 2

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        skip: int = 0,
    ) -> None:
        """Chooses the timesteps to visit; the second call of a step is at the timestep to which the step leads."""
        super().set_timesteps(num_inference_steps, timesteps, sigmas=sigmas, skip=skip)
        self.timesteps = self.timesteps.repeat_interleave(2)[1:]
        first, *between, last = self.sigmas
        self.sigmas = [first, *(sigma for sigma in between for _ in range(2)), last]

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes half a step: to the next sigma, or the same way again with a better slope.

        Args:
            model_output: `[B, ...]`, for what the model was shown of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; not used: the method is deterministic.
        """
        sigma = self.sigmas[index]
        original = self.to_original(model_output, index, state.sample)
        if self.clip_sample:
            original = original.clamp(-self.clip_sample_range, self.clip_sample_range)
        if not state.past:
            after = self.sigmas[index + 1]
            return State(torch.lerp(state.sample, original, 1 - after / sigma), original, (state.sample, after - sigma))
        # Half way between start and end of the Euler step lies what its slope contributes; the new slope adds its half.
        start, length = state.past
        half = length / sigma / 2
        return State(noise_schedule.weighted_sum((0.5, 0.5 + half, -half), (start, state.sample, original)), original)
