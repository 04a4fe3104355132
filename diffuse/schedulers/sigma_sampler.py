"""The base classes of samplers that compute with sigmas: with a state that grows with the noise, or of one variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import DiscreteSampler
from diffuse.schedulers.sigmas import (
    check_range,
    check_sigmas,
    choose_spacing,
    interpolate_timesteps,
    refuse_spacing,
    schedule,
)


@dataclass(kw_only=True)
class SigmaSampler(DiscreteSampler):
    """Sigmas of chosen timesteps, or spaced sigmas, whose timesteps follow from them.

    After `set_timesteps`, `sigmas` has one more entry than there are steps: the sigma that the last one leads to.
    """

    takes_sigmas: ClassVar[bool] = True

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    align_your_steps: str | None = None
    sigma_min: float | None = None  # of the three before; None for the noise schedule's
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._space = choose_spacing(self)
        self.schedule = schedule(self.alphas_cumprod, self.rescale_betas_zero_snr)
        self.sigmas: list[float] = []

    def choose_timesteps(self, steps: int, timesteps: Sequence[float] | None, spare: int = 0) -> np.ndarray:
        """Returns the timesteps to visit, falling, float64 `[S]`: those given, or `steps` of them by the spacing.

        Raises:
            ConfigError: they leave the range of training, or sigmas are spaced, which does not go together.
        """
        if timesteps is None:
            return noise_schedule.timesteps(
                self.timestep_spacing,
                steps,
                self.num_train_timesteps,
                self.steps_offset,
                spare=spare,
                reached=self.reached_timesteps,
            )
        refuse_spacing(self, "timesteps")
        return noise_schedule.check_timesteps(timesteps, self.num_train_timesteps)

    @property
    def reached_timesteps(self) -> int:
        """Is how many of the timesteps of training, from the first on, can be visited."""
        return self.num_train_timesteps

    def choose_sigmas(self, steps: int, largest: float, smallest: float) -> np.ndarray | None:
        """Returns spaced sigmas `[S]` between the two, or between `sigma_max` and `sigma_min` where these are set.

        Returns None where the options ask for no spacing.
        """
        if self._space is None:
            return None
        largest = self.sigma_max if self.sigma_max is not None else largest
        smallest = self.sigma_min if self.sigma_min is not None else smallest
        check_range(steps, largest, smallest)
        return self._space(steps, largest, smallest)

    def given_sigmas(self, values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the timesteps, with fractions, and sigmas that the caller chose, both `[S]`, without a 0 at the end.

        Raises:
            ConfigError: they do not fall, begin above those of training, or an option spaces sigmas too.
        """
        refuse_spacing(self, "sigmas")
        sigmas = check_sigmas(values, float(self.schedule[-1]))
        return interpolate_timesteps(sigmas, self.schedule), sigmas

    def set_steps(self, timesteps: np.ndarray, sigmas: np.ndarray, final: float, skip: int) -> None:
        """Sets timesteps and sigmas, both `[S]`, without the first `skip`; the last step leads to sigma `final`."""
        self.timesteps = torch.from_numpy(timesteps)[skip:]
        # As numbers of float32, which is what the reference computes with.
        self.sigmas = np.append(sigmas, final).astype(np.float32).tolist()[skip:]


class VarianceExploding(SigmaSampler):
    """The state is `original + sigma * noise`; the model is shown it at unit variance, as it was trained."""

    needs_signal = False

    @property
    def init_noise_sigma(self) -> float:
        """Is the standard deviation of the first noise.

        The variance that the original would add counts under `leading` only, as in the reference.
        """
        largest = max(self.sigmas)
        return (largest**2 + 1) ** 0.5 if self.timestep_spacing == "leading" else largest

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
            ConfigError: more steps than training had, timesteps that do not fall or leave its range, or sigmas that do
                not fall.
        """
        if sigmas is None:
            visited = self.choose_timesteps(num_inference_steps, timesteps).astype(np.float32)
            at = np.interp(visited, np.arange(len(self.schedule)), self.schedule)
            spaced = self.choose_sigmas(len(visited), at[0], at[-1])
            if spaced is not None:
                visited, at = interpolate_timesteps(spaced, self.schedule), spaced
        else:
            visited, at = self.given_sigmas(sigmas)
        self.set_steps(visited.astype(np.float32), at, self.final_sigma, skip)

    @property
    def final_sigma(self) -> float:
        """Is the sigma that the last step leads to."""
        return 0.0

    def scale_model_input(self, sample: Tensor, index: int) -> Tensor:
        """Returns the model's input: the sample `[B, ...]` at unit variance."""
        return sample / (self.sigmas[index] ** 2 + 1) ** 0.5

    def to_original(self, model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        """Returns the original that the model's output for `sample` at step `index` implies; all `[B, ...]`."""
        left = 1 / (self.sigmas[index] ** 2 + 1)
        return noise_schedule.to_original(
            self.prediction_type, model_output, self.scale_model_input(sample, index), left
        )

    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor:
        """Returns `original` with as much of `noise`, both `[B, ...]`, as a sample has before step `index`."""
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

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[int] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        skip: int = 0,
    ) -> None:
        """Chooses the timesteps to visit, without the first `skip`; `timesteps` or `sigmas` give them outright.

        Raises:
            ConfigError: more steps than training had, timesteps that do not fall or leave its range, or sigmas that do
                not fall.
        """
        if sigmas is None:
            visited = self.choose_timesteps(num_inference_steps, timesteps, spare=1).round()
            at = np.interp(visited, np.arange(len(self.schedule)), self.schedule)
            spaced = self.choose_sigmas(len(visited), float(self.schedule[-1]), float(self.schedule[0]))
            if spaced is not None:
                visited, at = interpolate_timesteps(spaced, self.schedule), spaced
                visited = visited.round() if self.align_your_steps else self.round_timesteps(visited)
        else:
            visited, at = self.given_sigmas(sigmas)
            visited = visited.round()
        final = 0.0 if self.final_sigmas_type == "zero" else float(self.schedule[0])
        if skip >= len(visited):  # fewer than asked for, where lambda_min_clipped leaves out the first
            raise ConfigError(
                f"num_inference_steps={num_inference_steps}: of these scheduler.lambda_min_clipped leaves "
                f"{len(visited)}, and strength skips {skip}; raise strength"
            )
        self.steps, self.skipped = len(visited), skip
        self.set_steps(visited.astype(np.int64), at, final, skip)

    def round_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Returns the timesteps `[S]` of spaced sigmas without fractions: rounded for Karras, otherwise cut.

        The reference does the same.
        """
        return timesteps.round() if self.use_karras_sigmas else np.floor(timesteps)

    def to_original(self, model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        """Returns the original that the model's output for `sample` at step `index` implies; all `[B, ...]`."""
        left = 1 / (self.sigmas[index] ** 2 + 1)
        original = noise_schedule.to_original(self.prediction_type, model_output, sample, left)
        if self.thresholding:
            original = noise_schedule.dynamic_threshold(
                original, self.dynamic_thresholding_ratio, self.sample_max_value
            )
        return original

    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor:
        """Returns `original` with as much of `noise`, both `[B, ...]`, as a sample has before step `index`."""
        return noise_schedule.weighted_sum(signal_and_noise(self.sigmas[index]), (original, noise))


def signal_and_noise(sigma: float) -> tuple[float, float]:
    """Returns the shares of original and noise in a state of unit variance whose ratio is `sigma`."""
    signal = 1 / math.sqrt(sigma**2 + 1)
    return signal, sigma * signal


def ancestral_split(sigma: float, after: float) -> tuple[float, float]:
    """Returns how far down a step from `sigma` to `after` goes, and the fresh noise with which it comes up again.

    The two make `after` in squares.
    """
    return after**2 / sigma, after * (1 - (after / sigma) ** 2) ** 0.5
