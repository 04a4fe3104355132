"""DPM-Solver++, multistep of second order (Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models", 2022, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VariancePreserving, signal_and_noise


@dataclass(kw_only=True)
class DPMpp2M(VariancePreserving):
    """Solves the equation exactly for a constant original; its change is extrapolated from the step before.

    `solver_type` says how: by the original half way (`midpoint`, the paper's), or in a straight line (`heun`).
    """

    label: ClassVar[str] = "DPM++ 2M"

    solver_type: str = "midpoint"
    euler_at_final: bool = False

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"solver_type": ("midpoint", "heun")}

    def round_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Returns the timesteps `[S]` of spaced sigmas without fractions."""
        # The reference cuts the fractions of a cosine schedule even for Karras, here but not in UniPC.
        return np.floor(timesteps) if self.beta_schedule == "squaredcos_cap_v2" else super().round_timesteps(timesteps)

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
            generators: one a sample, on the CPU; not used: the method is deterministic.
        """
        original = self.to_original(model_output, index, state.sample)
        sigma, after = self.sigmas[index : index + 2]
        if after == 0:
            return State(original, original)
        (_, sigma_s), (alpha_t, sigma_t) = signal_and_noise(sigma), signal_and_noise(after)
        h = math.log(sigma / after)
        weights = sigma_t / sigma_s, *(alpha_t * weight for weight in self.integral(index, state, h))
        sample = noise_schedule.weighted_sum(weights, (state.sample, original, *state.past)[: len(weights)])
        return State(sample, original, (original,))

    def integral(self, index: int, state: State, span: float) -> tuple[float, ...]:
        """Integrates `exp(-u) * original` over a `span` of half the log SNR.

        Returns the weight of the current original and, for second order, which also takes its slope, the weight of the
        original in `state` from the step before.
        """
        constant = -math.expm1(-span)
        if not state.past or span == 0 or self._first_order(index):
            return (constant,)
        before, sigma, after = self.sigmas[index - 1 : index + 2]
        r = math.log(before / sigma) / math.log(sigma / after)
        midpoint = -math.expm1(-span) / 2
        weight = midpoint if self.solver_type == "midpoint" else math.expm1(-span) / span + 1
        return constant + weight / r, -weight / r

    def _first_order(self, index: int) -> bool:
        last = index == len(self.timesteps) - 1
        return last and (self.euler_at_final or (self.lower_order_final and self.steps < 15))
