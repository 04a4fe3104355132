"""SDE-DPM-Solver++, multistep of second order (Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models", 2022, appendix on stochastic sampling)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.dpmpp_2m import DPMpp2M
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import signal_and_noise


@dataclass(kw_only=True)
class DPMpp2MSDE(DPMpp2M):
    """Solves the diffusion's stochastic equation: it keeps less of the sample and adds new noise in its place."""

    label: ClassVar[str] = "DPM++ 2M SDE"

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes one step down.

        Args:
            model_output: `[B, ...]`, for the sample of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; the noise comes from them.
        """
        original = self.to_original(model_output, index, state.sample)
        sigma, after = self.sigmas[index : index + 2]
        if after == 0:
            return State(original, original)
        if generators is None:
            raise ValueError("new noise needs the images' generators")
        (_, sigma_s), (alpha_t, sigma_t) = signal_and_noise(sigma), signal_and_noise(after)
        h = math.log(sigma / after)
        kept = sigma_t / sigma_s * math.exp(-h)
        weights = kept, *(alpha_t * weight for weight in self.integral(index, state, 2 * h))
        sample = noise_schedule.weighted_sum(weights, (state.sample, original, *state.past)[: len(weights)])
        noise = noise_schedule.unit_noise(sample, generators)
        return State(sample.add(noise, alpha=sigma_t * (-math.expm1(-2 * h)) ** 0.5), original, (original,))
