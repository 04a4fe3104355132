"""DPM2, a midpoint method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
algorithm 2 without its noise, and DPM-Solver-2 of Lu et al., 2022; in this form from Crowson's k-diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.midpoint import MidpointSampler
from diffuse.schedulers.sampler import State


@dataclass(kw_only=True)
class KDPM2(MidpointSampler):
    """An Euler step half way in log sigma, then the whole step with the slope found there."""

    label: ClassVar[str] = "DPM2"

    def round_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Returns the timesteps `[S]` that whole steps begin at: rounded for Karras, as in the reference."""
        return timesteps.round() if self.use_karras_sigmas else timesteps

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes half a step: to the sigma between, or the whole way with the slope found there.

        Args:
            model_output: `[B, ...]`, for what the model was shown of `state` at step `index`.
            index: of the call among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; not used: the method is deterministic.
        """
        original = self.to_original(model_output, index, state.sample)
        sigma, after = self.sigmas[index : index + 2]
        if not state.past:
            return State(torch.lerp(state.sample, original, 1 - after / sigma), original, (state.sample,))
        return State(self.whole_step(index, after, state, original), original)

    def whole_step(self, index: int, end: float, state: State, original: Tensor) -> Tensor:
        """Returns the sample `[B, ...]` at sigma `end`: from the start of the step that call `index` completes, with
        the slope at `state`, whose `original` is `[B, ...]`."""
        (start,) = state.past
        share = (end - self.sigmas[index - 1]) / self.sigmas[index]
        return noise_schedule.weighted_sum((1.0, share, -share), (start, state.sample, original))
