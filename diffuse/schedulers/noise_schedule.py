"""The noise of each training timestep, the timesteps to visit, and the clean sample that a prediction implies.

`alphas_cumprod[t]` is the share of the signal's variance that is left at timestep `t`: a noised sample is
`sqrt(a) * original + sqrt(1 - a) * noise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError


def betas(
    schedule: str, count: int, start: float, end: float, trained: Sequence[float] | None = None, zero_snr: bool = False
) -> Tensor:
    """Returns the variance `[count]`, float32, that each training timestep adds.

    `linear` is of Ho et al., 2020; `scaled_linear`, linear in the square root, of Rombach et al., 2022;
    `squaredcos_cap_v2`, the cosine, of Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021.
    `trained` replaces them all. With `zero_snr` they are rescaled by `rescale_to_zero_terminal_snr`.
    """
    if trained is not None:
        result = torch.tensor(trained, dtype=torch.float32)
    elif schedule == "linear":
        result = torch.linspace(start, end, count, dtype=torch.float32)
    elif schedule == "scaled_linear":
        result = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif schedule == "squaredcos_cap_v2":
        left = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        result = torch.tensor([min(1 - left[i + 1] / left[i], 0.999) for i in range(count)], dtype=torch.float32)
    else:
        raise ConfigError(f"beta_schedule={schedule} is not implemented")
    return rescale_to_zero_terminal_snr(result) if zero_snr else result


def rescale_to_zero_terminal_snr(variances: Tensor) -> Tensor:
    """Rescales betas `[N]` so that nothing of the signal is left at the last timestep.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024, algorithm 1.
    """
    root = (1.0 - variances).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    left = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([left[:1], left[1:] / left[:-1]])
    return 1 - alphas


def timesteps(
    spacing: str, steps: int, train_steps: int, offset: int, *, spare: int = 0, reached: int | None = None
) -> np.ndarray:
    """Returns the `steps` timesteps to visit, float64 `[steps]`, which fall; `linspace` leaves fractions.

    Source: table 2 of Lin et al., 2024; `simple` is ComfyUI's scheduler of that name. Solvers that stop short of the
    last timestep place `spare` more and leave them out, except under `trailing` and `simple`, which never reach it. Of
    the timesteps of training only the first `reached` are visited where that is given; `trailing` keeps its stride and
    so makes fewer steps, as in the reference.

    Raises:
        ConfigError: there is no room for so many steps, or `offset` leads beyond the last timestep.
    """
    if not 1 <= steps <= train_steps:
        raise ConfigError(
            f"num_inference_steps={steps}: should be from 1 to {train_steps}, the steps that the model was trained with"
        )
    count = steps + spare
    reached = train_steps if reached is None else reached
    values: np.ndarray
    if spacing == "linspace":
        values = np.linspace(0, reached - 1, count)[::-1]
    elif spacing == "leading":
        values = np.arange(count)[::-1] * float(reached // count) + offset
    elif spacing == "trailing":
        # Rounding can leave one value too many in arange: the last would be 0, and below it there is nothing.
        values = np.round(np.arange(reached, 0, -train_steps / steps)) - 1
    elif spacing == "simple":
        values = reached - 1 - np.floor(np.arange(steps) * (reached / steps))
    else:
        raise ConfigError(f"timestep_spacing={spacing} is not implemented")
    values = values[:steps]
    if values[0] >= train_steps:
        raise ConfigError(
            f"scheduler.steps_offset={offset} leads beyond the last of {train_steps} timesteps at "
            f"num_inference_steps={steps}; lower one of the two"
        )
    if not (np.diff(values.round()) < 0).all():
        raise ConfigError(
            f"num_inference_steps={steps}: with scheduler.timestep_spacing={spacing} some of {train_steps} timesteps "
            "would be visited twice; take fewer steps"
        )
    return values


def check_timesteps(values: Sequence[float], train_steps: int) -> np.ndarray:
    """Checks timesteps that the caller chose, and returns them as float64 `[S]`.

    Raises:
        ConfigError: they do not fall, or leave the range of training.
    """
    falling = all(a > b for a, b in pairwise(values))
    if not values or not falling or values[0] > train_steps - 1 or values[-1] < 0:
        raise ConfigError(f"timesteps must fall and lie between 0 and {train_steps - 1}: {list(values)}")
    return np.asarray(values, np.float64)


def to_original(prediction_type: str, output: Tensor, sample: Tensor, alpha_cumprod: Tensor | float) -> Tensor:
    """Returns the clean sample that a model's output implies; all are `[B, ...]`.

    `v_prediction` is the velocity of Salimans and Ho, "Progressive Distillation", 2022, appendix D.
    """
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return (noise * output).sub_(sample).div_(-signal)  # (sample - noise * output) / signal, in one new tensor
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return (signal * sample).sub_(noise * output)
    raise ConfigError(f"prediction_type={prediction_type} is not implemented")


def to_noise(prediction_type: str, output: Tensor, sample: Tensor, alpha_cumprod: Tensor | float) -> Tensor:
    """Returns the noise that a model's output implies; all are `[B, ...]`. See `to_original`."""
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "sample":
        return (signal * output).sub_(sample).div_(-noise)
    if prediction_type == "v_prediction":
        return (signal * output).add_(noise * sample)
    raise ConfigError(f"prediction_type={prediction_type} is not implemented")


def dynamic_threshold(original: Tensor, ratio: float, largest: float) -> Tensor:
    """Clips each image `[B, ...]` at the `ratio` quantile of its absolute values, at least 1 and at most `largest`,
    and scales it to -1..1 (Saharia et al., "Photorealistic Text-to-Image Diffusion Models", 2022, section 2.3)."""
    flat = original.float().flatten(1)  # [B, N]; quantiles need float32
    limit = torch.quantile(flat.abs(), ratio, dim=1).clamp(min=1, max=largest)[:, None]
    return (torch.clamp(flat, -limit, limit) / limit).view_as(original).to(original.dtype)


def add_noise(original: Tensor, noise: Tensor, alpha_cumprod: Tensor | float) -> Tensor:
    """Adds noise to `original`, both `[B, ...]`, until `alpha_cumprod` of its variance is left."""
    return (alpha_cumprod**0.5 * original).add_((1 - alpha_cumprod) ** 0.5 * noise)


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Returns `weights[0] * tensors[0] + ...`, tensors `[B, ...]`, with one pass over memory each."""
    result = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        result.add_(tensor, alpha=weight)
    return result


def unit_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws noise of the shape of `like` `[B, ...]`: each image's from its own CPU generator, in float32."""
    shape = (1, *like.shape[1:])
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(like)
