"""The noise schedule as standard deviations, and the ways to space them.

`sigma` is the noise in units of the signal, `sqrt((1 - a) / a)` where `a` of the variance is the signal's. A `schedule`
has the sigma of each timestep of training, and rises; other arrays are float64, and fall as sampling does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.schedulers.options import ALIGN_YOUR_STEPS, without_end

Spacing = Callable[[int, float, float], np.ndarray]  # steps, largest, smallest -> sigmas

_RHO = 7.0  # Karras et al., 2022, section 3
_LEAST = 1e-6  # below, steps would divide by what is nothing in float32
_BEYOND = 1.01  # published lists of sigmas round the largest up
_BETA = 0.6  # both parameters, as in the reference


def schedule(alphas_cumprod: Tensor, zero_snr: bool) -> np.ndarray:
    """Returns sigma at each timestep of training, float32 `[num_train_timesteps]`."""
    left = signal_left(alphas_cumprod, zero_snr)
    return np.asarray(((1 - left) / left) ** 0.5)


def signal_left(alphas_cumprod: Tensor, zero_snr: bool) -> Tensor:
    """Returns the share of the signal's variance at each timestep of training, `[num_train_timesteps]`, never zero."""
    left = alphas_cumprod.clone()
    if zero_snr:
        left[-1] = 2**-24  # sigma would be infinite; this is the reference's choice, 4096
    return left


def interpolate_timesteps(sigmas: np.ndarray, schedule: np.ndarray) -> np.ndarray:
    """Returns the timesteps `[S]` at which a schedule has these sigmas `[S]`, with fractions, linear in log sigma."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(schedule), np.arange(len(schedule)))


def karras(steps: int, largest: float, smallest: float) -> np.ndarray:
    """Spaces sigmas `[steps]` evenly in `sigma ** (1 / 7)`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, equation 5.
    """
    start, end = largest ** (1 / _RHO), smallest ** (1 / _RHO)
    return (start + np.linspace(0, 1, steps) * (end - start)) ** _RHO


def exponential(steps: int, largest: float, smallest: float) -> np.ndarray:
    """Spaces sigmas `[steps]` evenly in log sigma."""
    return np.exp(np.linspace(math.log(largest), math.log(smallest), steps))


def lu(steps: int, largest: float, smallest: float) -> np.ndarray:
    """Spaces sigmas `[steps]` evenly in half the log SNR, `-log(sigma)`; the ends are logarithms in float32, as in the
    reference.

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
    2022, section 3.
    """
    start, end = (float(np.log(np.float32(sigma))) for sigma in (largest, smallest))
    return np.exp(start + np.linspace(0, 1, steps) * (end - start))


def beta(steps: int, largest: float, smallest: float) -> np.ndarray:
    """Spaces sigmas `[steps]` by the quantiles of a beta distribution, which are dense at both ends.

    Source: Lee et al., "Beta Sampling is All You Need", 2024.
    """
    return smallest + beta_quantiles(1 - np.linspace(0, 1, steps)) * (largest - smallest)


def beta_quantiles(p: np.ndarray) -> np.ndarray:
    """Returns the quantiles `p` `[S]` of the distribution Beta(0.6, 0.6), by Newton's method on its series around 0.

    With `u = x**a`, the cumulative distribution is `u / (a B) * sum (1 - a)_n / n! * a / (a + n) * x**n` (the series of
    the incomplete beta function, DLMF 8.17.7), which is nearly linear in `u`. The distribution is symmetric, so that x
    never exceeds 1/2, where what 60 terms leave out is below double precision.
    """
    a = _BETA
    scale = a * math.gamma(a) ** 2 / math.gamma(2 * a)  # a B(a, a)
    n = np.arange(60)
    factors = np.cumprod(np.append(1.0, (n[1:] - a) / n[1:])) * a / (a + n)
    half = np.minimum(p, 1 - p)
    u = half * scale
    for _ in range(8):
        x = u ** (1 / a)
        value = u / scale * (factors * x[:, None] ** n).sum(1)
        u = np.minimum(u - (value - half) * scale * (1 - x) ** (1 - a), 0.5**a)
    x = u ** (1 / a)
    return np.where(p > 0.5, 1 - x, x)


# By the model that they were found for: sigmas of ten steps, and the one that these lead to.
_TABLES = (
    (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
)
_ALIGN_YOUR_STEPS = dict(zip(ALIGN_YOUR_STEPS, _TABLES, strict=True))


def align_your_steps(steps: int, largest: float, smallest: float, *, model: str) -> np.ndarray:
    """Returns the sigmas `[steps]` found best for a model: of ten steps, and along lines between their logarithms.

    Both ends are the table's own. Source: Sabour et al., "Align Your Steps: Optimizing Sampling Schedules in Diffusion
    Models", 2024, and the tables published with it.
    """
    table = np.log(_ALIGN_YOUR_STEPS[model])
    return np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(table)), table))[:-1]


SPACINGS: dict[str, Spacing] = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
    "use_lu_lambdas": lu,
}


def choose_spacing(sampler: Any) -> Spacing | None:
    """Returns the spacing that a sampler's options ask for, None for the timesteps' own sigmas.

    Raises:
        ConfigError: there are two.
    """
    chosen = spacing_options(sampler)
    if len(chosen) > 1:
        raise ConfigError(f"scheduler.{chosen[0]} and {chosen[1]} are both true; set one of them to false")
    model = getattr(sampler, "align_your_steps", None)  # which not every sampler has
    if model is None:
        return SPACINGS[chosen[0]] if chosen else None
    if chosen:
        raise ConfigError(f"scheduler.{chosen[0]} and align_your_steps both space sigmas; leave one of the two out")
    if sampler.sigma_min is not None or sampler.sigma_max is not None:
        raise ConfigError("scheduler.align_your_steps has its own ends; leave sigma_min and sigma_max out")
    return partial(align_your_steps, model=model)


def spacing_options(sampler: Any) -> list[str]:
    """Returns the options of a sampler that are true and space its sigmas."""
    return [name for name in SPACINGS if getattr(sampler, name, False)]  # Lu's is not every sampler's


def unused_ends_note(sampler: Any, options: Mapping[str, Any]) -> str | None:
    """Returns a line on ends of spaced sigmas among the options that were chosen, where nothing spaces them."""
    unused = [f"{name}={options[name]:g}" for name in ("sigma_min", "sigma_max") if options.get(name) is not None]
    if not unused or spacing_options(sampler):
        return None
    known = ", ".join(name for name in SPACINGS if hasattr(sampler, name))
    return (
        f"scheduler.{' and scheduler.'.join(unused)}: no effect without one of {known}, which space sigmas between them"
    )


def refuse_spacing(sampler: Any, values: str) -> None:
    """Refuses `values`, timesteps or sigmas, beside an option that spaces the sigmas.

    Raises:
        ConfigError: there is one.
    """
    for name in spacing_options(sampler):
        raise ConfigError(f"{values} are given and scheduler.{name} is true; leave one of the two out")
    if getattr(sampler, "align_your_steps", None) is not None:
        raise ConfigError(f"{values} are given and scheduler.align_your_steps is set; leave one of the two out")


def check_sigmas(values: Sequence[float], largest: float) -> np.ndarray:
    """Checks sigmas that the caller chose, and returns them as float64 `[S]`, without a 0 at the end.

    Raises:
        ConfigError: they do not fall in float32, one is nearly 0, or the first is above `largest`, that of training.
    """
    values = without_end(values)
    with np.errstate(over="ignore"):
        stored = np.asarray(values, np.float32).tolist()  # as samplers have them
    if not values or not all(_LEAST <= value < math.inf for value in stored) or not _falls(stored):
        raise ConfigError(f"sigmas={[*values]}: should fall and be {_LEAST:g} or more, but for a 0 at the end")
    if values[0] > largest * _BEYOND:
        raise ConfigError(f"sigmas={[*values]}: this model was trained up to {largest:.4g}; begin there or below")
    return np.asarray(values, np.float64)


def _falls(values: Sequence[float]) -> bool:
    return all(a > b for a, b in pairwise(values))


def check_range(steps: int, largest: float, smallest: float) -> None:
    """Refuses sigmas that would not fall.

    Raises:
        ConfigError: saying so.
    """
    if steps > 1 and not smallest < largest:
        raise ConfigError(
            f"scheduler.sigma_min and sigma_max: sigmas would go from {largest:g} to {smallest:g}; they should fall"
        )
