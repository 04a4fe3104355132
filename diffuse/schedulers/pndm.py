"""PNDM (Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule
from diffuse.schedulers.sampler import DiscreteSampler, State

_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
_ADAMS_BASHFORTH = (  # by the number of slopes there are, the latest first
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(kw_only=True)
class PNDM(DiscreteSampler):
    """Linear multistep over the last four predictions, each step being one of DDIM with their combination.

    It begins with three Runge-Kutta steps of four calls each. With `skip_prk_steps`, as is usual, it begins with the
    slopes that there are: one, and then the same step again with the mean of the slopes at both its ends.
    """

    label: ClassVar[str] = "PLMS"

    set_alpha_to_one: bool = False
    skip_prk_steps: bool = False
    # Not taken from a checkpoint: the reference has no such option, and pictures depend on it. Noise that is a mean of
    # predictions would lead nowhere from a sample that is nothing but noise.
    rescale_betas_zero_snr: bool = field(default=False, init=False)

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0) -> None:
        """Chooses the timesteps to visit, without the first `skip`; `timesteps` gives them outright.

        Steps lead as far as DDIM's. Where the first are skipped it begins as it would at the top; the reference goes on
        in the middle of its list, and steps from timesteps where the sample is not.

        Raises:
            ConfigError: more steps than training had, timesteps that do not fall or leave its range, or too few for the
                Runge-Kutta steps.
        """
        train_steps = self.num_train_timesteps
        if timesteps is None:
            spaced = noise_schedule.timesteps(
                self.timestep_spacing, num_inference_steps, train_steps, self.steps_offset
            ).round()
            stride = train_steps // num_inference_steps
            after, before = spaced - stride, spaced + stride
        else:
            spaced = noise_schedule.check_timesteps(timesteps, train_steps)
            stride = int(spaced[0] - spaced[1]) if len(spaced) > 1 else 0
            after, before = np.append(spaced[1:], -1), np.append(spaced[0], spaced[:-1])
        t, after, before = (values.astype(np.int64).tolist()[skip:] for values in (spaced, after, before))
        steps = [(t[i], t[i], after[i]) for i in range(len(t))]  # shown at, from, to
        if self.skip_prk_steps:
            self._calls = [*steps[:1], *((one, before[1], one) for one in t[1:2]), *steps[1:]]
        elif len(t) < 4:
            raise ConfigError(
                f"{len(t)} steps: PNDM needs 4 or more for its Runge-Kutta steps; take more, or set "
                "scheduler.skip_prk_steps=true"
            )
        else:
            self._calls = []
            for start, end in pairwise(t[:4]):
                middle = end + stride // 2
                self._calls += [(start, start, start - stride // 2), (middle, start, middle)]
                self._calls += [(middle, start, end), (end, start, end)]
            self._calls += steps[3:]
        self.timesteps = torch.tensor([shown for shown, _, _ in self._calls])

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Makes the step, or the part of a Runge-Kutta step, that one call of the model leads to.

        Args:
            model_output: `[B, ...]`, for the sample of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; not used: the method is deterministic.
        """
        slopes, start, total = state.past or ((), state.sample, 0.0)
        if not self.skip_prk_steps and index < 12:
            stage = index % 4
            if stage == 0:
                slopes, start, total = (model_output, *slopes), state.sample, 0.0
            total = total + _RUNGE_KUTTA[stage] * model_output
            slope = total if stage == 3 else model_output
        elif self.skip_prk_steps and index == 1:
            slope = (slopes[0] + model_output) / 2
        else:
            slopes, start = (model_output, *slopes)[:4], state.sample
            slope = noise_schedule.weighted_sum(_ADAMS_BASHFORTH[len(slopes) - 1], slopes)
        _, t, after = self._calls[index]
        return self._transfer(start, slope, t, after)._replace(past=(slopes, start, total))

    def _transfer(self, sample: Tensor, slope: Tensor, t: int, after: int) -> State:
        """Applies the paper's equation 11, which is a step of DDIM.

        Outputs are combined as the model gives them, whatever it predicts: so does the reference, and pictures from
        models that predict the velocity depend on it.
        """
        alpha = self.alphas_cumprod[t]
        alpha_after = self.alphas_cumprod[after] if after >= 0 else self._final_alpha
        original = noise_schedule.to_original(self.prediction_type, slope, sample, alpha)
        noise = noise_schedule.to_noise(self.prediction_type, slope, sample, alpha)
        weights = float(alpha_after) ** 0.5, float(1 - alpha_after) ** 0.5
        return State(noise_schedule.weighted_sum(weights, (original, noise)), original)

    @property
    def _final_alpha(self) -> Tensor:
        return torch.tensor(1.0) if self.set_alpha_to_one else self.alphas_cumprod[0]
