"""Euler's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
algorithm 1 without its correction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VarianceExploding
from diffuse.schedulers.sigmas import exponential, interpolate_timesteps


@dataclass(kw_only=True)
class Euler(VarianceExploding):
    """Follows the probability-flow equation `dx / dsigma = (x - original) / sigma` in straight lines."""

    label: ClassVar[str] = "Euler"

    interpolation_type: str = "linear"
    final_sigmas_type: str = "zero"

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        skip: int = 0,
    ) -> None:
        """Chooses the timesteps to visit; see `VarianceExploding`.

        With `interpolation_type` log_linear, the sigmas are spaced evenly in their logarithm over all of training, to
        its smallest, whatever the timesteps are: so does the reference.
        """
        if self.interpolation_type == "linear" or sigmas is not None:
            super().set_timesteps(num_inference_steps, timesteps, sigmas=sigmas, skip=skip)
            return
        visited = self.choose_timesteps(num_inference_steps, timesteps).astype(np.float32)
        largest, smallest = float(self.schedule[-1]), float(self.schedule[0])
        spaced, final = self.choose_sigmas(len(visited), largest, smallest), self.final_sigma
        if spaced is None:
            *even, final = exponential(len(visited) + 1, largest, smallest)
            spaced = np.array(even)
        else:
            visited = interpolate_timesteps(spaced, self.schedule).astype(np.float32)
        self.set_steps(visited, spaced, final, skip)

    @property
    def final_sigma(self) -> float:
        """Is the sigma that the last step leads to."""
        return 0.0 if self.final_sigmas_type == "zero" else float(self.schedule[0])

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes one step down.

        Args:
            model_output: `[B, ...]`, for what the model was shown of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; not used: the method is deterministic.
        """
        sigma, after = self.sigmas[index : index + 2]
        original = self.to_original(model_output, index, state.sample)
        # Along the derivative, (x - original) / sigma, the way to the original is straight and ends at sigma 0.
        return State(torch.lerp(state.sample, original, 1 - after / sigma), original)
