"""The linear multistep method (Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, section
3; in this form, for sigmas that are not spaced evenly, from Crowson's k-diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VarianceExploding

_ORDER = 4


@dataclass(kw_only=True)
class LMS(VarianceExploding):
    """Extrapolates the slope by a polynomial in sigma through the last four, and integrates that exactly.

    The first steps use as many as there are. That is so after skipped steps too, where the reference takes weights for
    slopes that it has not.
    """

    label: ClassVar[str] = "LMS"

    # The reference has none of these.
    rescale_betas_zero_snr: bool = field(default=False, init=False)
    sigma_min: float | None = field(default=None, init=False)
    sigma_max: float | None = field(default=None, init=False)

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
        original = self.to_original(model_output, index, state.sample)
        sigma, after = self.sigmas[index : index + 2]
        slopes = (state.sample.sub(original).div_(sigma), *state.past)
        before = self.sigmas[index - len(slopes) + 1 : index + 1][::-1]
        weights = 1.0, *adams_bashforth(before, after)
        sample = noise_schedule.weighted_sum(weights, (state.sample, *slopes))
        return State(sample, original, slopes[: _ORDER - 1])


def adams_bashforth(nodes: Sequence[float], end: float) -> list[float]:
    """Returns the integrals of Lagrange's polynomials on `nodes` from the first of them to `end`.

    With `u = (node - nodes[0]) / (end - nodes[0])` the weights are those with which every power of `u` is integrated
    exactly (Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section III.5).
    """
    length = end - nodes[0]
    places = [(node - nodes[0]) / length for node in nodes]
    powers = range(len(places))
    moments = [length / (k + 1) for k in powers]
    return np.linalg.solve([[place**k for place in places] for k in powers], moments).tolist()
