"""From configuration and a checkpoint's published settings to a sampler, which is found by its module's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

from diffuse import schedulers
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schedulers.options import KNOWN, check_options, is_known_value

# Published values that ask for nothing, of settings that no sampler here has. The first files said in which library's
# tensors a scheduler computed.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"timestep_type": ("discrete",), "tensor_format": ("pt", "np", "numpy", "torch")}
_OFF: tuple[Any, ...] = (False, "", [], {})


def build_sampler(options: Mapping[str, Any], published: Mapping[str, Any]) -> Any:
    """Builds the sampler that `options` names by `_target_`, a class in `diffuse.schedulers`.

    An option that is null or absent takes the value in `published`, a checkpoint's `scheduler_config.json`, and the
    sampler's own default where that has none either.

    Raises:
        ConfigError: the target is not a sampler of this package or does not fit what the model predicts, or an option
            is unknown or has a wrong value.
        CheckpointError: the checkpoint asks for something that no sampler here implements.
    """
    target = str(options.get("_target_", ""))
    module, _, class_name = target.rpartition(".")
    sampler = _samplers(module).get(class_name)
    if sampler is None:
        raise ConfigError(
            f"scheduler._target_={target}: should be a sampler in diffuse.schedulers, as conf/scheduler has"
        )
    name = options.get("name", class_name)
    known = set(inspect.signature(sampler).parameters)
    chosen = {key: value for key, value in options.items() if key not in ("_target_", "name") and value is not None}
    for key in chosen:
        if key not in known:
            raise ConfigError(f"scheduler.{key}: {name} has no such option; it has {', '.join(sorted(known))}")
    check_options(chosen, sampler.choices)
    prediction = chosen.get("prediction_type") or published_prediction(published)
    if prediction == UNKNOWN:
        raise ConfigError(
            "the checkpoint does not say whether its U-Net predicts epsilon or v: add "
            "scheduler.prediction_type=v_prediction for one made from Stable Diffusion 2.0 or 2.1 of 768 pixels, or "
            "epsilon for one of 512"
        )
    if prediction not in sampler.predictions:
        raise ConfigError(
            f"scheduler={name} does not fit this model, which predicts {prediction}; "
            f"these do: {', '.join(samplers_for(prediction)) or 'none yet'}"
        )
    settings = {}
    for key, value in published.items():
        if key.startswith("_") or value is None:  # the published null of an optional value is the default
            continue
        if key == "predict_epsilon":
            _check_prediction(value, published, chosen)
        elif _is_unknown(key, value) or _is_refused(sampler, key, value, chosen):
            raise CheckpointError(f"scheduler/scheduler_config.json: {key}={value} is not implemented")
        # A name that two samplers give different values to, such as solver_type, is the other's here.
        if key in known and value in sampler.choices.get(key, (value,)):
            settings[key] = value
    return sampler(**{**settings, **chosen})


def _is_unknown(key: str, value: Any) -> bool:
    """Tells whether a published setting is none that a sampler has, and asks for something."""
    return key not in KNOWN and value not in _OFF and value not in _NEUTRAL.get(key, ())


def _check_prediction(predicts_epsilon: Any, published: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Refuses a file that says only by the earlier name of `prediction_type` that its model predicts something else."""
    if not predicts_epsilon and not (chosen.get("prediction_type") or published.get("prediction_type")):
        raise CheckpointError(
            "scheduler/scheduler_config.json: predict_epsilon=False and no prediction_type: add "
            "scheduler.prediction_type=sample, which the file means, or epsilon, which diffusers takes it as today"
        )


def _is_refused(sampler: Any, key: str, value: Any, chosen: Mapping[str, Any]) -> bool:
    """Tells whether a published value asks `sampler` for what it has not, and that nothing `chosen` replaces.

    It does where the sampler's namesake elsewhere would obey it, and where it is not even another sampler's value.
    """
    if key in chosen:
        return False
    values = sampler.refused.get(key)
    if values is not None and (not values or value in values):
        return True
    return key in sampler.choices and not is_known_value(key, value)


UNKNOWN = "unknown"  # the prediction type of a file that does not say it


def published_prediction(published: Mapping[str, Any]) -> str:
    """Returns what the model of a `scheduler_config.json` predicts, such as `epsilon`.

    Flow matching is recognised by the name of the sampler alone.
    """
    if str(published.get("_class_name", "")).startswith("FlowMatch"):
        return "flow_prediction"
    return str(published.get("prediction_type") or "epsilon")


def sampler_label(options: Mapping[str, Any]) -> str:
    """Returns the name under which picture viewers know the sampler of `options`, which a record may hold.

    It is the option `name` where `_target_` is not a sampler of this package, as in records of other versions.
    """
    module, _, class_name = str(options.get("_target_", "")).rpartition(".")
    return str(getattr(_samplers(module).get(class_name), "label", options["name"]))


def samplers_for(prediction: str) -> list[str]:
    """Returns the samplers, as `scheduler=` names them, for a model that predicts `prediction`."""
    return _samplers_where(lambda sampler: prediction in sampler.predictions)


def samplers_of_sigmas(predictions: Collection[str]) -> list[str]:
    """Returns the samplers, as `scheduler=` names them, that take sigmas, for a model that predicts one of these."""
    return _samplers_where(lambda sampler: sampler.takes_sigmas and not {*predictions}.isdisjoint(sampler.predictions))


def _samplers_where(holds: Callable[[Any], bool]) -> list[str]:
    modules = sorted(module.name for module in pkgutil.iter_modules(schedulers.__path__))
    return [module for module in modules if any(map(holds, _samplers(f"{schedulers.__name__}.{module}").values()))]


def _samplers(module: str) -> dict[str, Any]:
    """Returns the sampler classes of a module in this room: those with a method `step`."""
    if module.rpartition(".")[0] != schedulers.__name__:
        return {}
    try:
        members = vars(importlib.import_module(module))
    except ModuleNotFoundError:
        return {}
    return {
        name: member
        for name, member in members.items()
        if inspect.isclass(member) and member.__module__ == module and hasattr(member, "step")
    }
