"""DDIM (Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule, options


class StepOutput(NamedTuple):
    """`sample`, the state at the next timestep, and `original`, the clean sample as this step saw it."""

    sample: Tensor
    original: Tensor


class DDIM:
    """Walks from noise to a sample along the timesteps, deterministically for `eta` 0, as DDPM does for `eta` 1.

    Options carry the names of published scheduler configurations.

    Raises:
        ConfigError: a value is not one that the option can have, or two do not go together.
    """

    init_noise_sigma = 1.0

    def __init__(
        self,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        eta: float = 0.0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        options.check(given)
        if rescale_betas_zero_snr and prediction_type == "epsilon":
            raise ConfigError(
                "scheduler.rescale_betas_zero_snr=true leaves no signal at the last timestep, from which "
                "prediction_type=epsilon cannot say what the picture is; use v_prediction or sample"
            )
        if trained_betas is not None and len(trained_betas) != num_train_timesteps:
            raise ConfigError(
                f"scheduler.trained_betas has {len(trained_betas)} values for num_train_timesteps={num_train_timesteps}"
            )
        variances = noise_schedule.betas(
            beta_schedule, num_train_timesteps, beta_start, beta_end, trained_betas, rescale_betas_zero_snr
        )
        self.alphas_cumprod = (1.0 - variances).cumprod(0)  # [num_train_timesteps]
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        self.timestep_spacing = timestep_spacing
        self.steps_offset = steps_offset
        self.clip_sample_range = clip_sample_range if clip_sample else None
        self.threshold = (dynamic_thresholding_ratio, sample_max_value) if thresholding else None
        self.eta = eta
        self.timesteps = torch.empty(0, dtype=torch.int64)
        self._next: dict[int, int] = {}

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[int] | None = None) -> None:
        """Chooses the timesteps to visit; `timesteps` gives them outright.

        A step leads as far as the spacing's stride, `num_train_timesteps // num_inference_steps`, below its timestep,
        which is the next timestep or, under `linspace` and `trailing`, near it: so does the field's reference. From
        given timesteps it leads to the next of them.

        Raises:
            ConfigError: more steps than training had, or timesteps that do not fall or leave its range.
        """
        if timesteps is not None:
            self.timesteps = noise_schedule.given_timesteps(timesteps, self.num_train_timesteps)
            visited = self.timesteps.tolist()
            self._next = dict(zip(visited, [*visited[1:], -1], strict=True))
            return
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ConfigError(
                f"num_inference_steps={num_inference_steps}: should be from 1 to {self.num_train_timesteps}, the steps "
                "that the model was trained with"
            )
        self.timesteps = noise_schedule.timesteps(
            self.timestep_spacing, num_inference_steps, self.num_train_timesteps, self.steps_offset
        )
        if int(self.timesteps[0]) >= self.num_train_timesteps:
            raise ConfigError(
                f"scheduler.steps_offset={self.steps_offset} leads beyond the last of {self.num_train_timesteps} "
                f"timesteps at num_inference_steps={num_inference_steps}; lower one of the two"
            )
        stride = self.num_train_timesteps // num_inference_steps
        self._next = {t: t - stride for t in self.timesteps.tolist()}

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int) -> Tensor:
        """What the model is shown: the sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> StepOutput:
        """One step from `timestep` down: equation 12 of the paper, with equation 16's sigma.

        Args:
            model_output, sample: `[B, ...]`.
            generators: one a sample, on the CPU; needed where `eta` is above 0.
        """
        t = int(timestep)
        after = self._next[t]
        alpha = self.alphas_cumprod[t]
        alpha_after = self.alphas_cumprod[after] if after >= 0 else self.final_alpha_cumprod
        original, noise = noise_schedule.to_original_and_noise(self.prediction_type, model_output, sample, alpha)
        if self.threshold is not None:
            original = noise_schedule.dynamic_threshold(original, *self.threshold)
        elif self.clip_sample_range is not None:
            original = original.clamp(-self.clip_sample_range, self.clip_sample_range)
        variance = (1 - alpha_after) / (1 - alpha) * (1 - alpha / alpha_after)
        sigma = self.eta * variance**0.5
        direction = (1 - alpha_after - sigma**2) ** 0.5 * noise
        result = alpha_after**0.5 * original + direction
        if self.eta > 0:
            if generators is None:
                raise ValueError("eta above 0 needs the images' generators")
            result = result + sigma * noise_schedule.unit_noise(result, generators)
        return StepOutput(result, original)

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`original` `[B, ...]` with as much of `noise` as the timesteps `[B]` have."""
        return noise_schedule.add_noise(self.alphas_cumprod, original, noise, timesteps)
