"""DEIS, the multistep form in log rho (Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator",
2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VariancePreserving, signal_and_noise


@dataclass(kw_only=True)
class DEIS(VariancePreserving):
    """Extrapolates the noise by a polynomial in log sigma through the last predictions, and integrates that exactly.

    Along the way `sample / alpha` changes by the noise times the change of sigma, which is the paper's rho.
    """

    label: ClassVar[str] = "DEIS"

    solver_order: int = 2
    # The reference has neither option. It ends at the smallest sigma of training.
    final_sigmas_type: str = field(default="sigma_min", init=False)
    rescale_betas_zero_snr: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_order > 3:
            raise ConfigError(f"scheduler.solver_order={self.solver_order}: should be 1, 2 or 3")

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
        sigma, after = self.sigmas[index : index + 2]
        alpha_s, alpha_t = signal_and_noise(sigma)[0], signal_and_noise(after)[0]
        noises = (self.to_noise(model_output, index, state.sample), *state.past)[: self._order(index)]
        before = self.sigmas[index - len(noises) + 1 : index + 1][::-1]
        weights = alpha_t / alpha_s, *(alpha_t * weight for weight in _integrals(before, after))
        return State(
            noise_schedule.weighted_sum(weights, (state.sample, *noises)),
            past=(noises[0], *state.past)[: self.solver_order - 1],
            compute_original=partial(self.to_original, model_output, index, state.sample),
        )

    def to_noise(self, model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        """Returns the noise that the model's output for `sample` at step `index` implies; all `[B, ...]`."""
        if self.thresholding:
            alpha, share = signal_and_noise(self.sigmas[index])
            return (sample - alpha * self.to_original(model_output, index, sample)) / share
        left = 1 / (self.sigmas[index] ** 2 + 1)
        return noise_schedule.to_noise(self.prediction_type, model_output, sample, left)

    def _order(self, index: int) -> int:
        """Returns how many predictions a step uses at most; few in the last steps where `lower_order_final` says so."""
        if self.lower_order_final and self.steps < 15:
            return min(self.solver_order, len(self.timesteps) - index)
        return self.solver_order


def _integrals(sigmas: Sequence[float], after: float) -> list[float]:
    """Returns the integrals of Lagrange's polynomials in log sigma from the first of `sigmas` to `after`.

    With `u = log(sigma / sigmas[0])`, the moments `m[k]`, the integrals of `u**k` by sigma, follow from one another by
    parts. The weights of values at the nodes `u[i]` are those with which every power of `u` is integrated exactly.
    """
    end = math.log(after / sigmas[0])
    moments = [after - sigmas[0]]
    for k in range(1, len(sigmas)):
        moments.append(after * end**k - k * moments[-1])
    nodes = [math.log(sigma / sigmas[0]) for sigma in sigmas]
    return np.linalg.solve([[node**k for node in nodes] for k in range(len(nodes))], moments).tolist()
