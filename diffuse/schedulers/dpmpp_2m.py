"""DPM-Solver++, multistep (Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models", 2022, algorithm 2, and the appendix on stochastic sampling)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import State
from diffuse.schedulers.sigma_sampler import VariancePreserving, signal_and_noise

STOCHASTIC = "sde-dpmsolver++"


@dataclass(kw_only=True)
class DPMpp2M(VariancePreserving):
    """Solves the equation exactly for a constant original; its change is extrapolated from the steps before.

    `solver_type` says how second order does it: by the original half way (`midpoint`, the paper's), or in a straight
    line (`heun`). With `sde-dpmsolver++` it solves the diffusion's stochastic equation: it keeps less of the sample and
    adds new noise in its place.
    """

    label: ClassVar[str] = "DPM++ 2M"

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    lambda_min_clipped: float = -math.inf

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": ("dpmsolver++", STOCHASTIC),
    }
    refused: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "variance_type": ("learned", "learned_range"),
        "algorithm_type": ("dpmsolver", "sde-dpmsolver"),  # of noise
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_order > 3:
            raise ConfigError(f"scheduler.solver_order={self.solver_order}: should be 1, 2 or 3")
        if self.reached_timesteps < 2:
            raise ConfigError(
                f"scheduler.lambda_min_clipped={self.lambda_min_clipped:g} leaves nothing of the "
                f"{self.num_train_timesteps} timesteps of training; lower it"
            )

    @property
    def reached_timesteps(self) -> int:
        """Is how many timesteps have half a log SNR, lambda, of `lambda_min_clipped` or more."""
        left = self.alphas_cumprod.clone()
        if self.rescale_betas_zero_snr:
            left[-1] = 2**-24  # as in the sigmas
        half_log_snr = left.sqrt().log() - (1 - left).sqrt().log()
        return int((half_log_snr >= self.lambda_min_clipped).sum())

    def round_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Returns the timesteps `[S]` of spaced sigmas without fractions."""
        # The reference cuts the fractions of a cosine schedule even for Karras, here but not in UniPC.
        if self.beta_schedule == "squaredcos_cap_v2":
            return np.floor(timesteps)
        return timesteps.round() if self.use_lu_lambdas else super().round_timesteps(timesteps)

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
            generators: one a sample, on the CPU; the noise of `sde-dpmsolver++` comes from them.
        """
        original = self.to_original(model_output, index, state.sample)
        sigma, after = self.sigmas[index : index + 2]
        if after == 0:
            return State(original, original)
        (_, sigma_s), (alpha_t, sigma_t) = signal_and_noise(sigma), signal_and_noise(after)
        h = math.log(sigma / after)
        is_stochastic = self.algorithm_type == STOCHASTIC
        kept, span = (math.exp(-h), 2 * h) if is_stochastic else (1.0, h)
        weights = sigma_t / sigma_s * kept, *(alpha_t * weight for weight in self.integral(index, state, span))
        sample = noise_schedule.weighted_sum(weights, (state.sample, original, *state.past)[: len(weights)])
        if is_stochastic:
            if generators is None:
                raise ValueError("new noise needs the images' generators")
            noise = noise_schedule.unit_noise(sample, generators)
            sample = sample.add(noise, alpha=sigma_t * (-math.expm1(-2 * h)) ** 0.5)
        return State(sample, original, (original, *state.past)[: self.solver_order - 1])

    def integral(self, index: int, state: State, span: float) -> tuple[float, ...]:
        """Integrates `exp(-u) * original` over a `span` of half the log SNR.

        Returns the weight of the current original and, for higher orders, which also take its slope and curvature, the
        weights of the originals in `state` from the steps before.
        """
        constant = -math.expm1(-span)
        order = min(len(state.past) + 1, self._order(index))
        if order == 1 or span == 0:
            return (constant,)
        before = self.sigmas[index - order + 1 : index + 2]
        lengths = [math.log(before[i] / before[i + 1]) for i in range(order)]  # of the steps, this one last
        slope = constant / 2 if self.solver_type == "midpoint" and order == 2 else 1 - constant / span
        r = lengths[-2] / lengths[-1]
        if order == 2:
            return constant + slope / r, -slope / r
        # The slope through three originals, and their curvature. For new noise, the half has the other sign in the
        # reference than in Crowson's k-diffusion; pictures are to be the reference's.
        half = -0.5 if self.algorithm_type == STOCHASTIC else 0.5
        curvature = half - (span - constant) / span**2
        r_before = lengths[0] / lengths[-1]
        bend = (slope * r + curvature) / (r + r_before)
        return constant + (slope + bend) / r, -(slope + bend) / r - bend / r_before, bend / r_before

    def _order(self, index: int) -> int:
        """Returns the order of a step at most; it is lower at the end where the options say so."""
        to_go = len(self.timesteps) - index
        if to_go == 1 and self.euler_at_final:
            return 1
        return min(self.solver_order, to_go) if self.lower_order_final and self.steps < 15 else self.solver_order
