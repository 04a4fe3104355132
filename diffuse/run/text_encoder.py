"""Opens the text encoder of a model alone, without what makes a film of its prompts."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.model_sources import locate_models
from diffuse.config.groups import load_group
from diffuse.config.text_backend import is_own_encoder
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.device.profile import choose_profile, has_budget, model_thresholds, without_components
from diffuse.errors import ConfigError
from diffuse.pipelines.components import Role
from diffuse.pipelines.families import check_model_text_backend, load_family
from diffuse.schema import HardwareConfig
from diffuse.text_backends.embeddings import TextEncoder

_ROLES = (Role.text_encoder, Role.tokenizer, Role.text_connectors)  # the last tells by its SHA-256 what they are for


def open_text_encoder(cfg: DictConfig) -> TextEncoder:
    """Finds the text encoder of the model of `cfg`, and checks it. Nothing else of the model is fetched or loaded.

    Raises:
        ConfigError, HardwareError, CheckpointError: it is not there, does not fit, or has no films to encode for.
    """
    check_model_text_backend(cfg)
    family, name = load_family(cfg.model._target_), cfg.text_backend.name
    if family.text_encoder_name is None:
        raise ConfigError(f"model={cfg.model.name}: is a model of pictures; choose one of films, such as model=ltx2")
    if not is_own_encoder(name):
        raise ConfigError(f"text_backend={name}: here the model's own text encoder encodes; leave it out")
    if has_budget(cfg):
        raise ConfigError(
            "memory_profile.budget_gib and host_gib: are for films; encode with memory_profile=streaming to take little"
        )
    hw = hardware.detect(cast(HardwareConfig, OmegaConf.to_object(cfg.hardware)))
    hardware.apply(hw)
    components = family.components
    names = tuple(each for each, component in components.items() if component.role in _ROLES)
    (checkpoint,) = locate_models(cfg, {"model": names})
    profile = choose_profile(cfg.memory_profile, load_group("memory_profile"), model_thresholds(cfg), hw)
    encoders = [each for each in names if components[each].role is Role.text_encoder]
    profile = without_components(profile, [each for each in components if each not in encoders])
    return family.build_text_encoder(checkpoint, Memory(profile, hw, cfg.model.half_dtype))
