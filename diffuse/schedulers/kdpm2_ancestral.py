"""DPM2 with ancestral noise (Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
2021, appendix F; in this form from Crowson's k-diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.kdpm2 import KDPM2
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import ancestral_split


@dataclass(kw_only=True)
class KDPM2Ancestral(KDPM2):
    """Goes further down than the next sigma, and comes up to it with fresh noise."""

    label: ClassVar[str] = "DPM2 a"

    def middle(self, sigma: float, after: float) -> float:
        """Returns the sigma half way, in log sigma, down to `after**2 / sigma`, where a step leads: it is `after`."""
        return after

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes half a step: to the sigma between, or the whole way with the slope found there, and noise.

        Args:
            model_output: `[B, ...]`, for what the model was shown of `state` at step `index`.
            index: of the call among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; the noise comes from them.
        """
        if not state.past:
            return super().step(model_output, index, state)
        if generators is None:
            raise ValueError("ancestral noise needs the images' generators")
        original = self.to_original(model_output, index, state.sample)
        down, up = ancestral_split(self.sigmas[index - 1], self.sigmas[index + 1])
        sample = self.whole_step(index, down, state, original)
        return State(sample.add_(noise_schedule.unit_noise(sample, generators), alpha=up), original)
