"""UniPC (Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023)."""

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


@dataclass(kw_only=True)
class UniPC(VariancePreserving):
    """Each prediction of the model first corrects the step that led to it, then predicts the next.

    `solver_type` is the paper's B(h): h (`bh1`) or exp(h) - 1 (`bh2`). With `predict_x0` the model's predictions are
    taken as originals, otherwise as noise. Steps that `disable_corrector` lists are not corrected.
    """

    label: ClassVar[str] = "UniPC"

    solver_order: int = 2
    solver_type: str = "bh2"
    predict_x0: bool = True
    disable_corrector: Sequence[int] = ()

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"solver_type": ("bh1", "bh2")}
    refused: ClassVar[Mapping[str, tuple[str, ...]]] = {"solver_p": ()}  # another sampler as the predictor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_order > 3:
            raise ConfigError(f"scheduler.solver_order={self.solver_order}: should be 1, 2 or 3")

    def step(
        self,
        model_output: Tensor,
        index: int,
        state: State,
        generators: Sequence[torch.Generator] | None = None,
    ) -> State:
        """Corrects the step before and makes one step down.

        Args:
            model_output: `[B, ...]`, for the sample of `state` at step `index`.
            index: of the step among `timesteps`.
            state: the samples `[B, ...]`, and what earlier steps left.
            generators: one a sample, on the CPU; not used: the method is deterministic.
        """
        sample = state.sample
        original = self.to_original(model_output, index, sample)
        prediction = original if self.predict_x0 else self.to_noise(model_output, index, sample)
        start, past, order = state.past or (sample, (), 0)
        if past and self.skipped + index - 1 not in self.disable_corrector:
            sample = self.advance(start, index - 1, past[:order], prediction)
        predictions = (prediction, *past)[: self.solver_order]
        order = len(predictions)
        if self.lower_order_final:
            order = min(order, len(self.timesteps) - index)
        if self.sigmas[index + 1] == 0:
            order = 1  # lambda is infinite there; the reference gives NaN where no option makes it so
        return State(self.advance(sample, index, predictions[:order]), original, (sample, predictions, order))

    def advance(
        self, sample: Tensor, index: int, predictions: Sequence[Tensor], at_end: Tensor | None = None
    ) -> Tensor:
        """Advances `sample` from `index` to the next sigma: exact for a constant prediction, plus what slopes add.

        Args:
            sample: `[B, ...]`, before the step; so is what comes back.
            index: of the step.
            predictions: at `index` and before, the latest first, `[B, ...]` each.
            at_end: the prediction at the end of the step, which only the corrector has.
        """
        sigma, after = self.sigmas[index : index + 2]
        if after == sigma:
            return sample
        latest, *earlier = predictions
        (alpha_s, sigma_s), (alpha_t, sigma_t) = signal_and_noise(sigma), signal_and_noise(after)
        # The two forms of the equation are one with the signal's share and the noise's, and the sign of h, exchanged.
        kept_s, kept_t, own_s, own_t, sign = (
            (sigma_s, sigma_t, alpha_s, alpha_t, -1) if self.predict_x0 else (alpha_s, alpha_t, sigma_s, sigma_t, 1)
        )
        result = kept_t / kept_s * sample + (own_t - kept_t / kept_s * own_s) * latest
        if not earlier and at_end is None:
            return result
        h = math.log(sigma / after)
        ratios = [math.log(sigma / before) / h for before in self.sigmas[index - len(earlier) : index][::-1]]
        slopes = [(one - latest) / ratio for one, ratio in zip(earlier, ratios, strict=True)]
        if at_end is not None:
            ratios.append(1.0)
            slopes.append(at_end - latest)
        width = sign * h if self.solver_type == "bh1" else math.expm1(sign * h)
        weights = _weights(ratios, sign * h, width)
        return result.sub(noise_schedule.weighted_sum(weights, slopes), alpha=own_t * width)

    def to_noise(self, model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        """Returns the noise that the model's output for `sample` at step `index` implies; all `[B, ...]`."""
        left = 1 / (self.sigmas[index] ** 2 + 1)
        return noise_schedule.to_noise(self.prediction_type, model_output, sample, left)


def _weights(ratios: Sequence[float], h: float, width: float) -> list[float]:
    """Returns the weights of slopes to points at `ratios` of the step that make as many terms right (section 3)."""
    if len(ratios) == 1:
        return [0.5]  # accurate enough for either width, and what the reference takes
    phi, rows, values = math.expm1(h) / h, [], []
    for i in range(len(ratios)):
        phi = phi - 1 if i == 0 else phi / h - 1 / math.factorial(i + 1)
        rows.append([ratio**i for ratio in ratios])
        values.append(math.factorial(i + 1) * phi / width)
    return np.linalg.solve(rows, values).tolist()
