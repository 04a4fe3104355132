"""Euler's method for flow matching (Lipman et al., "Flow Matching for Generative Modeling", 2023; Esser et al.,
"Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule, options, sigmas
from diffuse.schedulers.sampler import State


@dataclass(kw_only=True)
class FlowMatchEuler:
    """Follows the velocity `noise - original` that the model predicts, along `sigma * noise + (1 - sigma) * original`.

    Sigmas fall evenly from 1 before they are shifted towards noise: by `shift`, or with `use_dynamic_shifting` by the
    `mu` of `set_timesteps`. `shift_terminal` then stretches them to end there. With `invert_sigmas` they rise from 0,
    and the velocity is `original - noise`. With `stochastic_sampling` each step draws its noise anew.

    Raises:
        ConfigError: a value is not one that the option can have, or two do not go together.
    """

    label: ClassVar[str] = "flow_match_euler"  # viewers know no name for it

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    invert_sigmas: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False

    predictions: ClassVar[tuple[str, ...]] = ("flow_prediction",)
    refused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    notes: ClassVar[tuple[str, ...]] = ()
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    calls_per_step: ClassVar[int] = 1
    takes_sigmas: ClassVar[bool] = True

    init_noise_sigma: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        options.check_options(vars(self))
        self._space = sigmas.choose_spacing(self)
        if self.invert_sigmas and self.stochastic_sampling:
            # The reference takes the noise for the original there, and ends in noise.
            raise ConfigError("scheduler.invert_sigmas and stochastic_sampling are both true; set one of them to false")
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise ConfigError(
                f"scheduler.base_image_seq_len={self.base_image_seq_len}: should be below "
                f"max_image_seq_len={self.max_image_seq_len}"
            )
        self.timesteps = torch.empty(0)
        self.sigmas: list[float] = []

    def calculate_shift(self, tokens: int) -> float:
        """Returns `mu` for a number of tokens, on the line from the two base options to the two maxima."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[float] | None = None,
        *,
        skip: int = 0,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Chooses the sigmas to visit, without the first `skip`.

        Args:
            timesteps: for the model; unless `sigmas` are given, these are the timesteps divided by
                `num_train_timesteps`, and shifted.
            sigmas: before they are shifted, falling and without the 0 at the end.
            mu: the dynamic shift, see `calculate_shift`; it has no effect on a static one.

        Raises:
            ConfigError: a dynamic shift is not given, or values do not fall or leave their range.
        """
        count = self.num_train_timesteps
        if sigmas is not None:
            visited = _falling("sigmas", sigmas, 1)
            if timesteps is not None and len(timesteps) != len(sigmas):
                raise ConfigError(f"{len(timesteps)} timesteps are given for {len(sigmas)} sigmas; give as many")
        elif timesteps is not None:
            visited = _falling("timesteps", timesteps, count) / count
        elif num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps={num_inference_steps}: should be 1 or more")
        else:
            # As in the reference, whose smallest sigma is shifted already and then once more.
            smallest = 1 / count if self.use_dynamic_shifting else float(_shifted(np.array(1 / count), self.shift))
            visited = np.linspace(1, smallest, num_inference_steps)
        visited = _shifted(visited, self._shift(mu))
        if self.shift_terminal and visited[-1] < 1:
            visited = 1 - (1 - visited) * ((1 - self.shift_terminal) / (1 - visited[-1]))
        if self._space is not None:
            visited = self._space(len(visited), visited[0], visited[-1])
        if self.invert_sigmas:
            visited = 1 - visited
        self.sigmas = np.append(visited, 1.0 if self.invert_sigmas else 0.0).astype(np.float32).tolist()[skip:]
        shown = visited * count if timesteps is None or self.invert_sigmas else np.asarray(timesteps)
        self.timesteps = torch.from_numpy(shown.astype(np.float32))[skip:]

    def scale_model_input(self, sample: Tensor, index: int) -> Tensor:
        """Returns the model's input at step `index`: the sample `[B, ...]` as it is."""
        return sample

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
            generators: one a sample, on the CPU; needed for stochastic sampling.
        """
        sigma, after = self.sigmas[index : index + 2]
        end = 1.0 if self.invert_sigmas else 0.0
        original = partial(state.sample.add, model_output, alpha=end - sigma)
        if not self.stochastic_sampling:
            return State(state.sample.add(model_output, alpha=after - sigma), compute_original=original)
        if generators is None:
            raise ValueError("stochastic sampling needs the images' generators")
        noise, clean = noise_schedule.unit_noise(state.sample, generators), original()
        return State(noise_schedule.weighted_sum((1 - after, after), (clean, noise)), clean)

    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor:
        """Returns `original` with as much of `noise`, both `[B, ...]`, as a sample has before step `index`.

        The reference calls this `scale_noise`, and does not invert it where sigmas are inverted.
        """
        sigma = 1 - self.sigmas[index] if self.invert_sigmas else self.sigmas[index]
        return sigma * noise + (1 - sigma) * original

    def _shift(self, mu: float | None) -> float:
        if not self.use_dynamic_shifting:
            return self.shift
        if mu is None:
            raise ConfigError(
                "scheduler.use_dynamic_shifting=true needs a shift from the number of tokens, which the pipeline of "
                "this model does not give; set scheduler.use_dynamic_shifting=false and scheduler.shift"
            )
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Equation 23 of Esser et al.: for a shift above 1, more noise at the same place."""
    return shift * sigmas / (shift * sigmas + 1 - sigmas)


def _falling(name: str, values: Sequence[float], largest: float) -> np.ndarray:
    if not values or values[0] > largest or values[-1] <= 0 or any(a <= b for a, b in pairwise(values)):
        raise ConfigError(f"{name} must fall, and lie above 0 and up to {largest:g}: {list(values)}")
    return np.asarray(values, np.float64)
