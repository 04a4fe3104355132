"""The field's names for what a sampler can be told, and a check of their values that needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from diffuse.errors import ConfigError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")

Check = Callable[[Any], str | None]  # a value -> what it should be, None where it is that


def check(options: Mapping[str, Any]) -> None:
    """Refuses a wrong value among a sampler's options. Null, which means "as the checkpoint publishes it", passes.

    Raises:
        ConfigError: naming the option, its value and what it can be.
    """
    for name, value in options.items():
        wanted = None if value is None or name not in _CHECKS else _CHECKS[name](value)
        if wanted is not None:
            raise ConfigError(f"scheduler.{name}={value}: should be {wanted}")


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    def check_number(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            fits = False
        else:
            fits = (low < value if above else low <= value) and value <= high
        limit = f"above {low:g}" if above else f"from {low:g}"
        return None if fits else f"a number {limit}" + (f" to {high:g}" if high < math.inf else "")

    return check_number


def _whole(low: int) -> Check:
    return lambda value: None if type(value) is int and value >= low else f"a whole number from {low}"


def _truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _one_of(*choices: str) -> Check:
    def check_choice(value: Any) -> str | None:
        if value in choices:
            return None
        near = get_close_matches(str(value), choices, 1)
        return f"one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")

    return check_choice


def _betas(value: Any) -> str | None:
    numbers = isinstance(value, list | tuple) and all(_number(0, 1, above=True)(beta) is None for beta in value)
    return None if numbers and value else "a list of numbers above 0 up to 1"


_CHECKS: dict[str, Check] = {
    "num_train_timesteps": _whole(1),
    "beta_start": _number(0, 1, above=True),
    "beta_end": _number(0, 1, above=True),
    "beta_schedule": _one_of(*BETA_SCHEDULES),
    "trained_betas": _betas,
    "prediction_type": _one_of(*PREDICTIONS),
    "timestep_spacing": _one_of(*SPACINGS),
    "steps_offset": _whole(0),
    "rescale_betas_zero_snr": _truth,
    "set_alpha_to_one": _truth,
    "clip_sample": _truth,
    "clip_sample_range": _number(0, above=True),
    "thresholding": _truth,
    "dynamic_thresholding_ratio": _number(0, 1),
    "sample_max_value": _number(1),
    "eta": _number(0, 1),
}
