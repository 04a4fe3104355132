"""Settings of published schedulers that are known to be mistakes, and what diffusers takes in their place.

The first checkpoints of Stable Diffusion were published with settings that they were not trained for, or without the
ones that they need. Pipelines of diffusers for Stable Diffusion 1.x and 2.x correct them, and pictures depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLIP_SAMPLE = ("clip_sample", True, False)
_SKIP_PRK_STEPS = ("skip_prk_steps", False, True)


def corrections(sampler: Any, options: Mapping[str, Any], inpaints: bool) -> dict[str, Any]:
    """Returns the settings to change in a sampler as its checkpoint publishes it, with their right values.

    Latents are no pixels, and are never clipped; `leading` timesteps begin at 1; painting into a picture begins without
    Runge-Kutta steps. The reference corrects the second for every pipeline, the first but for inpainting, and the third
    for inpainting alone.

    Args:
        sampler: as it is built without corrections; what it has not is not corrected.
        options: the user's, which win; null for none.
        inpaints: a masked part of a picture is painted anew.
    """
    changes: dict[str, Any] = {}
    name, outdated, right = _SKIP_PRK_STEPS if inpaints else _CLIP_SAMPLE
    if getattr(sampler, name, right) == outdated:
        changes[name] = right
    if getattr(sampler, "timestep_spacing", None) == "leading" and sampler.steps_offset != 1:  # nowhere else read
        changes["steps_offset"] = 1
    return {name: value for name, value in changes.items() if options.get(name) is None}


def correction_note(sampler: Any, changes: Mapping[str, Any]) -> str:
    """Says in one line what `changes` correct in `sampler`, and how to keep it."""
    pairs = [(name, _show(getattr(sampler, name)), _show(value)) for name, value in changes.items()]
    corrected = " and ".join(f"{name}={before} is taken as {after}" for name, before, after in pairs)
    kept = " ".join(f"scheduler.{name}={before}" for name, before, _ in pairs)
    return f"this checkpoint's scheduler settings are outdated: {corrected}, as diffusers does; to keep: {kept}"


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
