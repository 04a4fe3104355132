"""The base class of samplers for models trained at discrete timesteps, and the state that goes from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule, options


class State(NamedTuple):
    """The state of one batch. Nothing else changes between steps, so that one sampler serves any number of batches."""

    sample: Tensor  # [B, ...]
    original: Tensor | None = None  # the clean sample as the last step estimated it, [B, ...]
    past: tuple[Any, ...] = ()  # what the sampler keeps of earlier steps; only the sampler reads it
    compute_original: Callable[[], Tensor] | None = None  # where the step itself does not need the original

    def denoised(self) -> Tensor:
        """Returns the clean sample `[B, ...]` as the last step estimated it; before the first step, the sample."""
        if self.original is not None:
            return self.original
        return self.sample if self.compute_original is None else self.compute_original()


@dataclass(kw_only=True)
class DiscreteSampler:
    """The options that samplers have in common, under the names of published scheduler configurations.

    A sampler adds its `label`, its own options, `set_timesteps`, which fills `timesteps` with one entry for each call
    of the model, and `step`. The state is `sqrt(a) * original + sqrt(1 - a) * noise` unless the sampler says otherwise.

    Raises:
        ConfigError: a value is not one that the option can have, or two do not go together.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    label: ClassVar[str]  # the name that picture viewers know, as AUTOMATIC1111's web UI writes it
    predictions: ClassVar[tuple[str, ...]] = options.PREDICTIONS  # what the model may predict
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # for options whose values depend on the sampler
    # Published values of the namesake in diffusers that change pictures and are not implemented; none: every value.
    refused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    needs_signal: ClassVar[bool] = True  # whether each step needs to know the original
    calls_per_step: ClassVar[int] = 1  # of the model
    takes_sigmas: ClassVar[bool] = False  # in place of timesteps

    @property
    def init_noise_sigma(self) -> float:
        """Is the standard deviation of the noise that sampling starts from; valid after `set_timesteps`."""
        return 1.0

    def __post_init__(self) -> None:
        options.check_options(vars(self), self.choices)
        self.notes: tuple[str, ...] = ()  # lines for the user, on how it was set up
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon" and self.needs_signal:
            raise ConfigError(
                "scheduler.rescale_betas_zero_snr=true leaves no signal at the last timestep, from which "
                "prediction_type=epsilon cannot say what the picture is; use v_prediction or sample"
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ConfigError(
                f"scheduler.trained_betas has {len(self.trained_betas)} values for "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        betas = noise_schedule.betas(
            self.beta_schedule,
            self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
            self.trained_betas,
            self.rescale_betas_zero_snr,
        )
        self.alphas_cumprod = (1.0 - betas).cumprod(0)  # [num_train_timesteps]
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def scale_model_input(self, sample: Tensor, index: int) -> Tensor:
        """Returns the model's input at step `index`: the sample `[B, ...]` as it is."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor:
        """Returns `original` with as much of `noise`, both `[B, ...]`, as a sample has before step `index`."""
        return noise_schedule.add_noise(original, noise, self.alphas_cumprod[int(self.timesteps[index])])
