"""DDIM (Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import DiscreteSampler, State


@dataclass(kw_only=True)
class DDIM(DiscreteSampler):
    """Walks from noise to a sample along the timesteps, deterministically for `eta` 0, as DDPM does for `eta` 1."""

    label: ClassVar[str] = "DDIM"

    set_alpha_to_one: bool = True
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    eta: float = 0.0

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0) -> None:
        """Chooses the timesteps to visit, without the first `skip`, or takes `timesteps` as they are.

        A step leads as far as the spacing's stride, `num_train_timesteps // num_inference_steps`, below its timestep.
        That is the next timestep or, under `linspace` and `trailing`, near it; diffusers does the same. With
        `timesteps`, it leads to the next of them.

        Raises:
            ConfigError: more steps than training had, or timesteps that do not fall or leave its range.
        """
        train_steps = self.num_train_timesteps
        if timesteps is None:
            spaced = noise_schedule.timesteps(
                self.timestep_spacing, num_inference_steps, train_steps, self.steps_offset
            ).round()
            after = spaced - train_steps // num_inference_steps
        else:
            spaced = noise_schedule.check_timesteps(timesteps, train_steps)
            after = np.append(spaced[1:], -1)
        self.timesteps = torch.from_numpy(spaced.astype(np.int64))[skip:]
        self._after = after.astype(np.int64).tolist()[skip:]

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes one step down: equation 12 of the paper, with equation 16's sigma.

        Args:
            model_output: `[B, ...]`, for the sample of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; needed where `eta` is above 0.
        """
        sample, after = state.sample, self._after[index]
        alpha = self.alphas_cumprod[int(self.timesteps[index])]
        alpha_after = self.alphas_cumprod[after] if after >= 0 else self._final_alpha
        original = self._original(model_output, sample, alpha)
        noise = noise_schedule.to_noise(self.prediction_type, model_output, sample, alpha)
        if self.eta == 0:
            # Written into the original's memory, unless that is the model's; it is computed again for a preview.
            spare = None if original is model_output else original
            return State(
                torch.mul(alpha_after**0.5, original, out=spare).add_((1 - alpha_after) ** 0.5 * noise),
                compute_original=partial(self._original, model_output, sample, alpha),
            )
        if generators is None:
            raise ValueError("eta above 0 needs the images' generators")
        variance = (1 - alpha_after) / (1 - alpha) * (1 - alpha / alpha_after)
        sigma = self.eta * variance**0.5
        # For eta 1 from zero SNR nothing is left here, and rounding must not make it less.
        direction = (1 - alpha_after - sigma**2).clamp(min=0) ** 0.5 * noise
        result = (alpha_after**0.5 * original).add_(direction)
        return State(result.add_(sigma * noise_schedule.unit_noise(result, generators)), original)

    def _original(self, model_output: Tensor, sample: Tensor, alpha: Tensor) -> Tensor:
        original = noise_schedule.to_original(self.prediction_type, model_output, sample, alpha)
        if self.thresholding:
            return noise_schedule.dynamic_threshold(original, self.dynamic_thresholding_ratio, self.sample_max_value)
        return original.clamp(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else original

    @property
    def _final_alpha(self) -> Tensor:
        return torch.tensor(1.0) if self.set_alpha_to_one else self.alphas_cumprod[0]
