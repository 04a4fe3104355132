"""The base class of samplers that call the model at each sigma and again at one between it and the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from diffuse.schedulers.sigma_sampler import VarianceExploding
from diffuse.schedulers.sigmas import interpolate_timesteps


@dataclass(kw_only=True)
class MidpointSampler(VarianceExploding):
    """Interleaves sigmas and timesteps with those of the calls between; the last step, to sigma 0, is one call.

    A subclass adds `step`, which goes half a step: to the sigma between, or the whole way from where the step began.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    # The references have none of these.
    rescale_betas_zero_snr: bool = field(default=False, init=False)
    sigma_min: float | None = field(default=None, init=False)
    sigma_max: float | None = field(default=None, init=False)

    calls_per_step: ClassVar[int] = 2

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        skip: int = 0,
    ) -> None:
        """Chooses the timesteps to visit, without the first `skip`; `timesteps` or `sigmas` give them outright.

        Raises:
            ConfigError: more steps than training had, or timesteps that do not fall or leave its range.
        """
        super().set_timesteps(num_inference_steps, timesteps, sigmas=sigmas, skip=skip)
        between = np.array([self.middle(sigma, after) for sigma, after in pairwise(self.sigmas[:-1])])
        visited = np.empty(2 * len(self.timesteps) - 1)
        visited[::2] = self.round_timesteps(self.timesteps.numpy())
        visited[1::2] = interpolate_timesteps(between, self.schedule)
        self.timesteps = torch.from_numpy(visited.astype(np.float32))
        last = self.sigmas[-2:]
        self.sigmas = [value for pair in zip(self.sigmas[:-2], between.tolist(), strict=True) for value in pair] + last

    def middle(self, sigma: float, after: float) -> float:
        """Returns the sigma between a step's two at which the model is called: half way in log sigma."""
        return math.sqrt(sigma * after)

    def round_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Returns the timesteps `[S]` that whole steps begin at, as they are."""
        return timesteps
