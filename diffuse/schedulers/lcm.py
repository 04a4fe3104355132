"""LCM (Luo, Tan, Huang, Li and Zhao, "Latent Consistency Models", 2023: multistep sampling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import DiscreteSampler, State

_SIGMA_DATA = 0.5  # the standard deviation of the data, in the boundary condition


@dataclass(kw_only=True)
class LCM(DiscreteSampler):
    """Goes to the original at once and back to the next timestep with fresh noise; for models distilled to do it.

    The timesteps are some of the `original_inference_steps` that the model was distilled with.
    """

    label: ClassVar[str] = "LCM"

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    # The distillation has placed the steps.
    timestep_spacing: str = field(default="trailing", init=False)
    steps_offset: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_inference_steps > self.num_train_timesteps:
            raise ConfigError(
                f"scheduler.original_inference_steps={self.original_inference_steps}: should be up to "
                f"num_train_timesteps={self.num_train_timesteps}"
            )

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0) -> None:
        """Chooses the timesteps to visit, without the first `skip`; `timesteps` gives them outright.

        Raises:
            ConfigError: more steps than the distillation had, or timesteps that do not fall or leave training's range.
        """
        if timesteps is not None:
            visited = noise_schedule.check_timesteps(timesteps, self.num_train_timesteps)
        elif not 1 <= num_inference_steps <= self.original_inference_steps:
            raise ConfigError(
                f"num_inference_steps={num_inference_steps}: should be from 1 to {self.original_inference_steps}, the "
                "steps that the model was distilled with (scheduler.original_inference_steps)"
            )
        else:
            distilled = np.arange(self.original_inference_steps, 0, -1)
            distilled = distilled * (self.num_train_timesteps // self.original_inference_steps) - 1
            chosen = np.linspace(0, len(distilled), num_inference_steps, endpoint=False)
            visited = distilled[np.floor(chosen).astype(np.int64)]
        self.timesteps = torch.from_numpy(visited.astype(np.int64))[skip:]

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
            generators: one a sample, on the CPU; needed for every step but the last.
        """
        t = int(self.timesteps[index])
        original = noise_schedule.to_original(self.prediction_type, model_output, state.sample, self.alphas_cumprod[t])
        if self.thresholding:
            original = noise_schedule.dynamic_threshold(
                original, self.dynamic_thresholding_ratio, self.sample_max_value
            )
        elif self.clip_sample:
            original = original.clamp(-self.clip_sample_range, self.clip_sample_range)
        # The consistency function, which is the sample itself at timestep 0.
        variance = (t * self.timestep_scaling) ** 2 + _SIGMA_DATA**2
        weights = _SIGMA_DATA**2 / variance, t * self.timestep_scaling / variance**0.5
        denoised = noise_schedule.weighted_sum(weights, (state.sample, original))
        if index == len(self.timesteps) - 1:
            return State(denoised, denoised)
        if generators is None:
            raise ValueError("fresh noise needs the images' generators")
        return State(self.add_noise(denoised, noise_schedule.unit_noise(denoised, generators), index + 1), denoised)
