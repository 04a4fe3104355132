"""The options of samplers, under their published names, and a check of their values that needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from diffuse.errors import ConfigError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "linspace", "trailing", "simple")
PREDICTIONS = ("epsilon", "sample", "v_prediction")

_MOST_TIMESTEPS = 100_000  # of a hundred times as many as models have, tables would fill the memory

ALIGN_YOUR_STEPS = ("sd", "sdxl")  # models that there is a table for

Check = Callable[[Any], str | None]  # a value -> what it should be, None if it is right


def without_end(sigmas: Sequence[float]) -> Sequence[float]:
    """Returns given sigmas without a 0 at the end, which is no step: it is where the last one leads."""
    return sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas


def check_options(options: Mapping[str, Any], choices: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuses a wrong value among a sampler's options. Null, which means "as the checkpoint publishes it", passes.

    Args:
        options: option -> value; a name that no sampler has is not refused here.
        choices: option -> its values, for options whose values depend on the sampler.

    Raises:
        ConfigError: naming the option, its value and what it can be.
    """
    checks = _CHECKS | {name: _one_of(*values) for name, values in (choices or {}).items()}
    for name, value in options.items():
        expected = None if value is None or name not in checks else checks[name](value)
        if expected is not None:
            raise ConfigError(f"scheduler.{name}={value}: should be {expected}")


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    def check_number(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            fits = False
        else:
            fits = (low < value if above else low <= value) and value <= high
        limit = f"above {low:g}" if above else f"from {low:g}"
        return None if fits else f"a number {limit}" + (f" to {high:g}" if high < math.inf else "")

    return check_number


def _whole(low: int, high: float = math.inf) -> Check:
    limit = f"a whole number from {low}" + (f" to {high}" if high < math.inf else "")
    return lambda value: None if type(value) is int and low <= value <= high else limit


def _truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _one_of(*choices: str) -> Check:
    def check_choice(value: Any) -> str | None:
        if value in choices:
            return None
        near = get_close_matches(str(value), choices, 1)
        return f"one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")

    return check_choice


def _list_of(entry: Check, entries: str) -> Check:
    def check_list(value: Any) -> str | None:
        fits = isinstance(value, list | tuple) and all(entry(item) is None for item in value)
        return None if fits else f"a list of {entries}"

    return check_list


def _lower_bound(value: Any) -> str | None:
    return None if value == -math.inf else _number(-math.inf)(value) and "a number, or -inf for none"


def _anything(value: Any) -> str | None:
    return None


# Every name of the published configurations. A checkpoint names one sampler, and any other that fits may be chosen: it
# ignores the options that only other samplers have.
_CHECKS: dict[str, Check] = {
    # how the model was trained
    "num_train_timesteps": _whole(1, _MOST_TIMESTEPS),
    "beta_start": _number(0, 1, above=True),
    "beta_end": _number(0, 1, above=True),
    "beta_schedule": _one_of(*BETA_SCHEDULES),
    "trained_betas": _list_of(_number(0, 1, above=True), "numbers above 0 up to 1"),
    "prediction_type": _one_of(*PREDICTIONS),
    "rescale_betas_zero_snr": _truth,
    "variance_type": _anything,
    "original_inference_steps": _whole(1, _MOST_TIMESTEPS),
    "timestep_scaling": _number(0, above=True),
    # where the steps are
    "timestep_spacing": _one_of(*SPACINGS),
    "steps_offset": _whole(0),
    "use_karras_sigmas": _truth,
    "use_exponential_sigmas": _truth,
    "use_beta_sigmas": _truth,
    "use_lu_lambdas": _truth,
    "align_your_steps": _one_of(*ALIGN_YOUR_STEPS),
    "sigma_min": _number(0, above=True),
    "sigma_max": _number(0, above=True),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "interpolation_type": _one_of("linear", "log_linear"),
    "lambda_min_clipped": _lower_bound,
    # flow matching
    "shift": _number(0, above=True),
    "use_dynamic_shifting": _truth,
    "base_shift": _number(-math.inf),
    "max_shift": _number(-math.inf),
    "base_image_seq_len": _whole(1),
    "max_image_seq_len": _whole(1),
    "shift_terminal": _number(0, 1),
    "time_shift_type": _one_of("exponential", "linear"),
    "invert_sigmas": _truth,
    "stochastic_sampling": _truth,
    "flow_shift": _anything,
    # a step
    "eta": _number(0, 1),
    "set_alpha_to_one": _truth,
    "skip_prk_steps": _truth,
    "algorithm_type": _anything,
    "solver_order": _whole(1),
    "solver_type": _anything,
    "solver_p": _anything,
    "predict_x0": _truth,
    "lower_order_final": _truth,
    "euler_at_final": _truth,
    "disable_corrector": _list_of(_whole(0), "whole numbers from 0"),
    "clip_sample": _truth,
    "clip_sample_range": _number(0, above=True),
    "thresholding": _truth,
    "dynamic_thresholding_ratio": _number(0, 1),
    "sample_max_value": _number(0, above=True),
}
KNOWN = frozenset(_CHECKS)

# The values of options that have others in each sampler: every sampler's, of those that are not here too.
_EVERY_VALUE = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis"),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
}


def is_known_value(name: str, value: Any) -> bool:
    """Tells whether some sampler can have `value` in its option `name`, whose values depend on the sampler."""
    return name not in _EVERY_VALUE or value in _EVERY_VALUE[name]
