"""Samplers that think in sigmas: those whose state grows with the noise, and solvers whose state keeps its variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule, sigmas
from diffuse.schedulers.sampler import DiscreteSampler


@dataclass(kw_only=True)
class SigmaSampler(DiscreteSampler):
    """Sigmas at the timesteps' places in the noise schedule, or spaced for themselves, with the timesteps following.

    After `set_timesteps`, `sigmas` has one more entry than there are steps: where the last one leads.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None  # of those three; null for what the noise schedule has
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._space = sigmas.chosen_spacing(self)
        self.schedule = sigmas.schedule(self.alphas_cumprod, self.rescale_betas_zero_snr)
        self.sigmas: list[float] = []

    def visited(self, steps: int, given: Sequence[float] | None, spare: int = 0) -> np.ndarray:
        """Timesteps that fall, float64: those given, or `steps` of them by the spacing.

        Raises:
            ConfigError: they leave the range of training, or do not go with sigmas spaced for themselves.
        """
        if given is None:
            return noise_schedule.timesteps(
                self.timestep_spacing, steps, self.num_train_timesteps, self.steps_offset, spare=spare
            )
        if self._space is not None:
            raise ConfigError(
                "timesteps are given and scheduler.use_karras_sigmas, use_exponential_sigmas or use_beta_sigmas is "
                "true; leave one of the two out"
            )
        return noise_schedule.given_timesteps(given, self.num_train_timesteps)

    def spaced(self, steps: int, largest: float, smallest: float) -> np.ndarray | None:
        """Sigmas spaced for themselves, between the given two unless `sigma_max` and `sigma_min` say otherwise."""
        if self._space is None:
            return None
        largest = self.sigma_max if self.sigma_max is not None else largest
        smallest = self.sigma_min if self.sigma_min is not None else smallest
        sigmas.check_range(steps, largest, smallest)
        return self._space(steps, largest, smallest)

    def place(self, timesteps: np.ndarray, sigmas: np.ndarray, final: float, skip: int) -> None:
        """Sets the steps, without the first `skip`; the last leads to sigma `final`."""
        self.timesteps = torch.from_numpy(timesteps)[skip:]
        # As numbers of float32, which is what the reference computes with.
        self.sigmas = np.append(sigmas, final).astype(np.float32).tolist()[skip:]


class VarianceExploding(SigmaSampler):
    """The state is `original + sigma * noise`; the model is shown it at unit variance, as it was trained."""

    needs_signal = False

    @property
    def init_noise_sigma(self) -> float:
        """As the reference has it: the variance that the original would add counts under `leading` alone."""
        largest = max(self.sigmas)
        return (largest**2 + 1) ** 0.5 if self.timestep_spacing == "leading" else largest

    def set_timesteps(
        self, num_inference_steps: int, timesteps: Sequence[float] | None = None, *, skip: int = 0
    ) -> None:
        """Chooses the timesteps to visit, without the first `skip`; `timesteps` gives them outright.

        Raises:
            ConfigError: more steps than training had, or timesteps that do not fall or leave its range.
        """
        visited = self.visited(num_inference_steps, timesteps).astype(np.float32)
        at = np.interp(visited, np.arange(len(self.schedule)), self.schedule)
        spaced = self.spaced(len(visited), at[0], at[-1])
        if spaced is not None:
            visited, at = sigmas.timesteps_of(spaced, self.schedule).astype(np.float32), spaced
        self.place(visited, at, self.final_sigma, skip)

    @property
    def final_sigma(self) -> float:
        """Where the last step leads."""
        return 0.0

    def scale_model_input(self, sample: Tensor, index: int) -> Tensor:
        """The sample `[B, ...]` at unit variance."""
        return sample / (self.sigmas[index] ** 2 + 1) ** 0.5

    def to_original(self, model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        """What the model's output for `sample` at step `index` says the original is."""
        left = 1 / (self.sigmas[index] ** 2 + 1)
        return noise_schedule.to_original(
            self.prediction_type, model_output, self.scale_model_input(sample, index), left
        )

    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor:
        """`original` with as much of `noise`, both `[B, ...]`, as a sample has before step `index`."""
        return original.add(noise, alpha=self.sigmas[index])


@dataclass(kw_only=True)
class VariancePreserving(SigmaSampler):
    """Solvers of several steps, whose state is `alpha * original + sigma * noise` with `alpha**2 + sigma**2 == 1`.

    Here `sigmas` are still the ratios of the two, so that half the log signal-to-noise ratio, the papers' lambda, is
    `-log` of them.
    """

    final_sigmas_type: str = "zero"
    lower_order_final: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0) -> None:
        """Chooses the timesteps to visit, without the first `skip`; `timesteps` gives them outright.

        Raises:
            ConfigError: more steps than training had, or timesteps that do not fall or leave its range.
        """
        visited = self.visited(num_inference_steps, timesteps, spare=1).round()
        at = np.interp(visited, np.arange(len(self.schedule)), self.schedule)
        spaced = self.spaced(len(visited), float(self.schedule[-1]), float(self.schedule[0]))
        if spaced is not None:
            visited, at = self.whole(sigmas.timesteps_of(spaced, self.schedule)), spaced
        final = 0.0 if self.final_sigmas_type == "zero" else float(self.schedule[0])
        self.steps, self.skipped = len(visited), skip
        self.place(visited.astype(np.int64), at, final, skip)

    def whole(self, timesteps: np.ndarray) -> np.ndarray:
        """Timesteps of spaced sigmas without fractions: as the reference has it, rounded for Karras, otherwise cut."""
        return timesteps.round() if self.use_karras_sigmas else np.floor(timesteps)

    def to_original(self, model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        """What the model's output for `sample` at step `index` says the original is."""
        left = 1 / (self.sigmas[index] ** 2 + 1)
        original = noise_schedule.to_original(self.prediction_type, model_output, sample, left)
        if self.thresholding:
            original = noise_schedule.dynamic_threshold(
                original, self.dynamic_thresholding_ratio, self.sample_max_value
            )
        return original

    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor:
        """`original` with as much of `noise`, both `[B, ...]`, as a sample has before step `index`."""
        return noise_schedule.weighted_sum(signal_and_noise(self.sigmas[index]), (original, noise))


def signal_and_noise(sigma: float) -> tuple[float, float]:
    """The shares `alpha` and `sigma` of original and noise in a state of unit variance whose ratio is `sigma`."""
    signal = 1 / math.sqrt(sigma**2 + 1)
    return signal, sigma * signal
