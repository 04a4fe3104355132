"""DDPM (Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import DiscreteSampler, State

_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


@dataclass(kw_only=True)
class DDPM(DiscreteSampler):
    """Draws each sample from the distribution of the one before it in the diffusion, given the original.

    `variance_type` says how wide: as if the data were one point (`fixed_small`, `fixed_small_log`, which are one
    formula in two forms), or of unit variance (`fixed_large`). Each step leads to the next timestep that is visited.
    """

    label: ClassVar[str] = "DDPM"

    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance_type not in _VARIANCES:
            raise ConfigError(
                f"scheduler.variance_type={self.variance_type}: should be one of {', '.join(_VARIANCES)}; "
                "no model here predicts a variance"
            )

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0) -> None:
        """Chooses the timesteps to visit, without the first `skip`, or takes `timesteps` as they are.

        Raises:
            ConfigError: more steps than training had, or timesteps that do not fall or leave its range.
        """
        if timesteps is None:
            visited = noise_schedule.timesteps(
                self.timestep_spacing, num_inference_steps, self.num_train_timesteps, self.steps_offset
            ).round()
        else:
            visited = noise_schedule.check_timesteps(timesteps, self.num_train_timesteps)
        self.timesteps = torch.from_numpy(visited.astype(np.int64))[skip:]

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes one step down: equation 7 of the paper.

        Args:
            model_output: `[B, ...]`, for the sample of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; the noise comes from them.
        """
        alpha_prod = self._alpha_prod(index)
        alpha_prod_after = self._alpha_prod(index + 1)
        original = self._original(model_output, state.sample, alpha_prod)
        alpha = alpha_prod / alpha_prod_after
        weights = (
            float(alpha_prod_after**0.5 * (1 - alpha) / (1 - alpha_prod)),
            float(alpha**0.5 * (1 - alpha_prod_after) / (1 - alpha_prod)),
        )
        sample = noise_schedule.weighted_sum(weights, (original, state.sample))
        if int(self.timesteps[index]) == 0:
            return State(sample, original)
        if generators is None:
            raise ValueError("new noise needs the images' generators")
        variance = 1 - alpha
        if self.variance_type != "fixed_large":
            variance = variance * (1 - alpha_prod_after) / (1 - alpha_prod)
        # No variance remains where a step leads to the original: the least, as in the reference, cannot be seen.
        return State(
            sample.add_(noise_schedule.unit_noise(sample, generators), alpha=float(variance.clamp(min=1e-20) ** 0.5)),
            original,
        )

    def _alpha_prod(self, index: int) -> Tensor:
        """Returns the share of the signal's variance before step `index`; all of it after the last step."""
        if index == len(self.timesteps):
            return torch.tensor(1.0)
        return self.alphas_cumprod[int(self.timesteps[index])]

    def _original(self, model_output: Tensor, sample: Tensor, alpha_prod: Tensor) -> Tensor:
        original = noise_schedule.to_original(self.prediction_type, model_output, sample, alpha_prod)
        if self.thresholding:
            return noise_schedule.dynamic_threshold(original, self.dynamic_thresholding_ratio, self.sample_max_value)
        return original.clamp(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else original
