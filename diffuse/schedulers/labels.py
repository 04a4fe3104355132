"""Settings of a sampler by the names of AUTOMATIC1111's web UI, so that it takes the same ones from a picture.

Source: its `modules/sd_schedulers.py` and `modules/infotext_utils.py`, version 1.10.
"""

from __future__ import annotations

from typing import Any

from diffuse.schedulers.sigma_sampler import SigmaSampler, VariancePreserving

_SPACED = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential", "use_beta_sigmas": "Beta"}
# Solvers that stop short of the last timestep place one more under `linspace`, and leave it out, as SGM Uniform does.
_SPACINGS = {"leading": "DDIM", "linspace": "Uniform", "trailing": "SGM Uniform", "simple": "Simple"}
_OWN_SPACING = ("DDIM", "PLMS", "UniPC", "LCM")  # these space their steps themselves there, where nothing is said
_ETA = {"Euler a": 1.0, "DPM2 a": 1.0, "DPM++ 2M SDE": 1.0, "DPM++ SDE": 1.0}  # as our samplers of these names have it


def schedule_settings(sampler: Any, given_timesteps: bool = False) -> dict[str, str]:
    """Returns by its name there what the web UI has to be told of a sampler beside its name.

    `Schedule type` is always told, because some of its samplers have another default than it has: DPM++ 2M is Karras.

    Args:
        given_timesteps: the request gives the timesteps themselves, which the web UI has no name for.
    """
    settings = {} if given_timesteps else {"Schedule type": _schedule_type(sampler)}
    if "Schedule type" in settings and settings["Schedule type"] in _SPACED.values():
        for name, value in (("min", getattr(sampler, "sigma_min", None)), ("max", getattr(sampler, "sigma_max", None))):
            settings |= {} if value is None else {f"Schedule {name} sigma": f"{value:g}"}
    eta = getattr(sampler, "eta", _ETA.get(sampler.label))
    if eta is not None:
        settings["Eta"] = f"{eta:g}"
    if sampler.label == "DDIM":
        settings["Eta DDIM"] = settings["Eta"]
    return settings


def _schedule_type(sampler: Any) -> str:
    for option, name in _SPACED.items():
        if getattr(sampler, option, False):
            return name
    if getattr(sampler, "align_your_steps", None):
        return "Align Your Steps"
    spacing = getattr(sampler, "timestep_spacing", None)
    if (spacing == "leading" and sampler.label in _OWN_SPACING) or sampler.label == "LCM":
        return "Automatic"
    if spacing == "linspace" and isinstance(sampler, SigmaSampler) and isinstance(sampler, VariancePreserving):
        return _SPACINGS["trailing"]
    return _SPACINGS.get(str(spacing), "Automatic")
