"""From configuration and a checkpoint's published settings to a sampler."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from diffuse.errors import CheckpointError, ConfigError
from diffuse.schedulers import options as option_checks

_ROOM = "diffuse.schedulers."

# Published for other samplers. A checkpoint names one sampler, and any that fits may be chosen instead.
_OF_OTHERS = frozenset(
    {
        "algorithm_type", "base_image_seq_len", "base_shift", "disable_corrector", "dynamic_thresholding_ratio",
        "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "invert_sigmas", "lambda_min_clipped",
        "lower_order_final", "max_image_seq_len", "max_shift", "original_inference_steps", "predict_x0", "sample_max_value",
        "set_alpha_to_one", "shift", "shift_terminal", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order",
        "solver_p", "solver_type", "stochastic_sampling", "thresholding", "time_shift_type", "timestep_scaling",
        "timestep_type", "use_beta_sigmas", "use_dynamic_shifting", "use_exponential_sigmas", "use_flow_sigmas",
        "use_karras_sigmas", "use_lu_lambdas", "variance_type",
    }
)  # fmt: skip


def build(options: Mapping[str, Any], published: Mapping[str, Any]) -> Any:
    """The sampler that `options` names by `_target_`, a class in `diffuse.schedulers`.

    An option that is null or absent takes the value in `published`, a checkpoint's `scheduler_config.json`, and the
    sampler's own default where that has none either.

    Raises:
        ConfigError: the target is not a sampler of this package, or an option is unknown or has a wrong value.
        CheckpointError: the checkpoint asks for something that no sampler here implements.
    """
    target = str(options.get("_target_", ""))
    module, _, name = target.rpartition(".")
    sampler = None
    if target.startswith(_ROOM):
        try:
            sampler = getattr(importlib.import_module(module), name, None)
        except ImportError:
            sampler = None
    if sampler is None or getattr(sampler, "__module__", None) != module or not hasattr(sampler, "set_timesteps"):
        raise ConfigError(
            f"scheduler._target_={target}: should be a sampler in diffuse.schedulers, as conf/scheduler has"
        )
    known = set(inspect.signature(sampler).parameters)
    chosen = {key: value for key, value in options.items() if key not in ("_target_", "name") and value is not None}
    for key in chosen:
        if key not in known:
            raise ConfigError(
                f"scheduler.{key}: {options.get('name', name)} has no such option; it has {', '.join(known)}"
            )
    option_checks.check(chosen)
    settings = {}
    for key, value in published.items():
        if key in known:
            settings[key] = value
        elif not key.startswith("_") and key not in _OF_OTHERS and value not in (None, False):
            raise CheckpointError(f"scheduler/scheduler_config.json: {key}={value} is not implemented")
    # The published null of an optional value is the default; that of any other would be refused by its check.
    settings = {key: value for key, value in settings.items() if value is not None}
    return sampler(**{**settings, **chosen})
