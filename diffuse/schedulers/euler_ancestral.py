"""Euler's method with ancestral noise (Song et al., "Score-Based Generative Modeling through Stochastic Differential
Equations", 2021, appendix F; in this form from Crowson's k-diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VarianceExploding


@dataclass(kw_only=True)
class EulerAncestral(VarianceExploding):
    """Goes further down than the next sigma, and comes up to it with fresh noise."""

    label: ClassVar[str] = "Euler a"

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
            generators: one a sample, on the CPU; the noise comes from them.
        """
        sigma, after = self.sigmas[index : index + 2]
        up = after * (1 - (after / sigma) ** 2) ** 0.5
        down = after**2 / sigma  # so that down**2 + up**2 == after**2
        original = self.to_original(model_output, index, state.sample)
        sample = torch.lerp(state.sample, original, 1 - down / sigma)  # as in Euler
        if up > 0:
            if generators is None:
                raise ValueError("ancestral noise needs the images' generators")
            sample = sample.add(noise_schedule.unit_noise(sample, generators), alpha=up)
        return State(sample, original)
