"""The choice of a memory profile: the one that is named, or the one that `auto` finds for the device's free memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from diffuse.device.hardware import Hardware
from diffuse.errors import ConfigError
from diffuse.schema import LEFT_TO_AUTO, Cleanup, Compile, MemoryProfileConfig, ReleaseTo, Storage

log = logging.getLogger(__name__)

AUTO = "auto"
CHOSEN = "budget"  # the name of a profile that was chosen for a budget; no option of conf/memory_profile has it
MAX_BATCH = 16  # images, unless the size is given; small ones gain nothing from larger batches
EVERY = "*"  # in a profile's on_device: every component the model has
DENOISERS = ("unet", "transformer")  # names of one role: a profile that names one of them means whichever a model has
_LISTS = ("on_device", "streamed", "sharded")  # fields that name components

Profiles = Mapping[str, MemoryProfileConfig]


def choose_profile(
    config: MemoryProfileConfig | DictConfig, profiles: Profiles, min_vram_gib: Mapping[str, float], hw: Hardware
) -> MemoryProfileConfig:
    """Returns the profile to run under: the one named, or under `auto` what `auto_profile` returns.

    Under `auto`, fields of `config` that the user set stay set, see `own_fields`. A named profile is obeyed with a
    warning where it needs more than is free.

    Args:
        config: the configuration's `memory_profile`.
        profiles: those of `conf/memory_profile`, by name.
        min_vram_gib: the model's thresholds, GiB that a profile needs free.

    Raises:
        ConfigError: a threshold's profile does not exist, or `auto` has no thresholds to go by.
    """
    named: MemoryProfileConfig = OmegaConf.to_object(config) if isinstance(config, DictConfig) else config  # type: ignore[assignment]
    if named.name != AUTO:
        need = min_vram_gib.get(named.name, 0.0)
        # The thresholds are those of weights as they are.
        if hw.vram_free_gib is not None and need > hw.vram_free_gib and named.storage is Storage.full:
            log.warning(
                "memory_profile=%s asks for %g GiB and %s has %.3g GiB free; memory_profile=auto chooses what fits",
                named.name,
                need,
                hw.name or "the planned card",
                hw.vram_free_gib,
            )
        return named
    chosen = auto_profile(profiles, min_vram_gib, hw)
    log.debug("memory_profile=auto chose %s (%s)", chosen.name, _reason(min_vram_gib.get(chosen.name, 0.0), hw))
    return replace(chosen, **own_fields(config, profiles))


def own_fields(config: MemoryProfileConfig | DictConfig, profiles: Profiles) -> dict[str, Any]:
    """Returns the fields of `auto` that the user set, whatever their values.

    In a composed configuration the others still stand as the file of `auto` has them. Without that file, as in a
    record, they are those that differ from the profile `auto` itself.
    """
    plain = profiles.get(AUTO, MemoryProfileConfig(name=AUTO))
    raw: Any = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else {}
    left = {name for name, value in raw.items() if str(value).startswith(f"${{{LEFT_TO_AUTO}:")}
    own = {}
    for name in [field.name for field in fields(MemoryProfileConfig) if field.name != "name"]:
        value = getattr(config, name)
        if (name in raw and name not in left) if left else (value != getattr(plain, name)):
            own[name] = OmegaConf.to_object(value) if isinstance(value, ListConfig) else value
    return own


def auto_profile(profiles: Profiles, min_vram_gib: Mapping[str, float], hw: Hardware) -> MemoryProfileConfig:
    """Returns the profile that `auto` stands for without a prediction: of those with a free threshold, the highest.

    Where no threshold is free it is that of `cpu_profile`.

    Raises:
        ConfigError: a threshold's profile does not exist, there are no thresholds, or no profile is left.
    """
    check_thresholds(profiles, min_vram_gib)
    if hw.vram_free_gib is not None and not min_vram_gib:
        known = ", ".join(name for name in profiles if name != AUTO)
        raise ConfigError(f"memory_profile=auto needs the model's min_vram_gib, which is empty; name one of {known}")
    fits = [name for name, need in min_vram_gib.items() if hw.vram_free_gib is not None and need <= hw.vram_free_gib]
    if fits:
        return profiles[max(fits, key=lambda name: min_vram_gib[name])]
    return cpu_profile(profiles)


def has_budget(cfg: DictConfig) -> bool:
    """Returns whether a configuration states a budget, of the device or of main memory."""
    return cfg.hardware.vram_gb is not None or keeps_budget(cfg)


def keeps_budget(cfg: DictConfig) -> bool:
    """Returns whether a run keeps within a budget: `memory_profile` states one, or `auto` has that of the hardware."""
    profile = cfg.memory_profile
    states = profile.budget_gib is not None or profile.host_gib is not None
    return states or (profile.name == AUTO and cfg.hardware.vram_gb is not None)


def goes_by_prediction(cfg: DictConfig, profiles: Profiles, hw: Hardware) -> bool:
    """Returns whether the profile of a run is predicted for its request.

    It is where a budget is stated, and under `auto` on a card that has less memory free than the model's largest
    threshold asks for, or whose model has no threshold.

    Raises:
        ConfigError: a threshold's profile does not exist.
    """
    if keeps_budget(cfg):
        return True
    if cfg.memory_profile.name != AUTO:
        return False
    thresholds = model_thresholds(cfg)
    check_thresholds(profiles, thresholds)
    return lacks_room(thresholds, hw)


def model_thresholds(cfg: DictConfig) -> dict[str, float]:
    """Returns the GiB that each memory profile needs free, as the model of a configuration has them."""
    return {str(name): float(need) for name, need in cfg.model.min_vram_gib.items()}


def lacks_room(min_vram_gib: Mapping[str, float], hw: Hardware) -> bool:
    """Returns whether a card has less memory free than the largest threshold; True where there is no threshold."""
    return hw.vram_free_gib is not None and max(min_vram_gib.values(), default=float("inf")) > hw.vram_free_gib


def cpu_profile(profiles: Profiles) -> MemoryProfileConfig:
    """Returns the profile that keeps everything on the CPU: `cpu_only`, or else the first that does.

    Raises:
        ConfigError: none does.
    """
    frugal = [name for name, profile in profiles.items() if name != AUTO and not profile.on_device]
    if not frugal:
        raise ConfigError(
            "memory_profile=auto found no profile that keeps everything on the CPU; name a memory_profile"
        )
    return profiles["cpu_only" if "cpu_only" in frugal else frugal[0]]


def check_thresholds(profiles: Profiles, min_vram_gib: Mapping[str, float]) -> None:
    """Raises ConfigError for a threshold whose profile does not exist."""
    for name in min_vram_gib:
        if name not in profiles:
            near = get_close_matches(name, profiles, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"model.min_vram_gib names the memory profile {name}, which does not exist{hint}")


def lighter_profile(profile: MemoryProfileConfig, profiles: Profiles, min_vram_gib: Mapping[str, float]) -> str | None:
    """Returns the name of the profile to try when `profile` ran out of memory: the next threshold down.

    None where there is none below.
    """
    if profile.name == CHOSEN:  # the budget decides, and not a profile
        return None
    need = min_vram_gib.get(profile.name, float("inf"))
    below = [name for name in min_vram_gib if min_vram_gib[name] < need and name in profiles]
    return max(below, key=lambda name: min_vram_gib[name], default=None)


def profile_batch_size(profile: MemoryProfileConfig, width: int, height: int) -> int:
    """Returns how many images of that size (pixels) are denoised in one batch."""
    if profile.batch_size is not None:
        return max(profile.batch_size, 1)
    return min(max((profile.batch_pixels or 0) // (width * height), 1), MAX_BATCH)


def _reason(need: float, hw: Hardware) -> str:
    if hw.vram_free_gib is None:
        return "no card"
    return f"it asks for {need:g} GiB, {'planned' if hw.planned else 'free'} are {hw.vram_free_gib:.1f}"


def includes(names: Sequence[str], name: str) -> bool:
    """Returns whether a profile's list of components names this one, or all."""
    return name in names or EVERY in names or (name in DENOISERS and any(each in names for each in DENOISERS))


def _is_component(name: str, components: Sequence[str]) -> bool:
    """Returns whether a model has what a profile's list names; a denoiser may have another name."""
    own = [each.rpartition(".")[2] for each in components]
    return name == EVERY or name in components or (name in DENOISERS and any(each in own for each in DENOISERS))


def without_components(profile: MemoryProfileConfig, names: Sequence[str]) -> MemoryProfileConfig:
    """Returns a profile that says nothing of components of these names, which a run does without."""
    lists = ([name for name in getattr(profile, field) if not includes(names, name)] for field in _LISTS)
    on_device, streamed, sharded = lists
    return replace(profile, on_device=on_device, streamed=streamed, sharded=sharded)


def check_components(profile: MemoryProfileConfig, names: Sequence[str], compiled: Compile) -> None:
    """Checks that a profile and a model with components of these names go together.

    Raises:
        ConfigError: a field names a component that the model has not, a streamed one is not on the device, or blocks
            are to be compiled that stream or whose weights are stored in fewer bits.
    """
    known = ", ".join(names)
    for field in _LISTS:
        for name in getattr(profile, field):
            if not _is_component(name, names):
                has = f"it has {known} ({EVERY} for all)"
                raise ConfigError(f"memory_profile.{field} names {name}, which this model has not; {has}")
    for field in _LISTS[1:]:
        for name in getattr(profile, field):
            if name != EVERY and not includes(profile.on_device, name):
                said = f"memory_profile.{field} names {name}"
                raise ConfigError(f"{said}, which memory_profile.on_device does not; add it there")
    for name in (each.rpartition(".")[2] for each in names):
        if includes(profile.streamed, name) and includes(profile.sharded, name):
            raise ConfigError(
                f"memory_profile.streamed and memory_profile.sharded both name {name}; leave it out of one of them"
            )
    if profile.streamed and not profile.on_device:
        raise ConfigError(
            "memory_profile.streamed needs components on the device, and memory_profile.on_device is empty"
        )
    if profile.release_to is ReleaseTo.disk and profile.cleanup is not Cleanup.phases:
        raise ConfigError(
            "memory_profile.release_to=disk has no effect without memory_profile.cleanup=phases; set that"
        )
    if profile.resident_blocks and not profile.streamed:
        raise ConfigError(
            "memory_profile.resident_blocks has no effect without memory_profile.streamed; set that, such as [unet]"
        )
    if profile.storage is not Storage.full and compiled is Compile.regional:
        raise ConfigError(
            "hardware.compile=regional does not compile layers whose weights are stored in fewer bits; use "
            "hardware.compile=none, or set memory_profile.storage=full"
        )
    if profile.streamed and compiled is Compile.regional:
        raise ConfigError(
            "hardware.compile=regional cannot compile blocks that stream; use hardware.compile=none, or set "
            "memory_profile.streamed=[]"
        )
