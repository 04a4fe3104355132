"""The pipeline classes that a configuration names, and the components that they need."""

from __future__ import annotations

import importlib
from typing import Any, cast

from omegaconf import DictConfig

from diffuse.config.checks import check_target
from diffuse.config.text_backend import AUTO, check_text_backend, is_own_encoder
from diffuse.errors import ConfigError
from diffuse.media.formats import check_film_output, chosen_format
from diffuse.pipelines.pipeline import ModelPipeline


def models(cfg: DictConfig) -> list[DictConfig]:
    """Returns the configurations of the models that make an image, one after the other."""
    return [cfg.model] if cfg.refiner._target_ is None else [cfg.model, cfg.refiner]


def component_names(cfg: DictConfig) -> dict[str, tuple[str, ...]]:
    """Returns for each of the groups `model` and `refiner` the folders of a checkpoint that it needs."""
    check_model_text_backend(cfg)
    own_text = is_own_encoder(cfg.text_backend.name)
    return {
        group: (*load_family(model._target_).component_names(own_text=own_text), "scheduler")
        for group, model in zip(("model", "refiner"), models(cfg), strict=False)
    }


def replaced_components(cfg: DictConfig) -> list[str]:
    """Returns the components of a model that the text backend of `cfg` stands in for."""
    family = load_family(cfg.model._target_)
    kept = family.component_names(own_text=is_own_encoder(cfg.text_backend.name))
    return [name for name in family.components if name not in kept]


def check_model_text_backend(cfg: DictConfig) -> None:
    """Checks the settings of the text backend, and that the model has such a one.

    Raises:
        ConfigError: one is wrong, or the model has none.
    """
    check_text_backend(cfg.text_backend)
    name, family = cfg.text_backend.name, load_family(cfg.model._target_)
    if name == AUTO or name == family.text_encoder_name:
        return
    if family.text_encoder_name is None:
        raise ConfigError(
            f"text_backend={name}: is for films, and model={cfg.model.name} encodes by itself; leave it out"
        )
    if is_own_encoder(cfg.text_backend.name):
        own = family.text_encoder_name
        raise ConfigError(f"text_backend={name}: the text encoder of model={cfg.model.name} is {own}; leave it out")


def load_family(target: str) -> type[ModelPipeline]:
    """Imports the pipeline class that `model._target_` names, from `diffuse.pipelines` and from nowhere else.

    Raises:
        ConfigError: there is no such pipeline.
    """
    check_target("model", target)
    module, _, name = target.rpartition(".")
    try:
        family: Any = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        family = None
    if not isinstance(family, type) or family.__module__ != module or not hasattr(family, "components"):
        raise ConfigError(f"model._target_={target}: there is no such pipeline; conf/model has those there are")
    return cast(type[ModelPipeline], family)


def choose_output_format(cfg: DictConfig) -> None:
    """Sets `output.format` where it is null, and checks that what the model makes can be written in it.

    Raises:
        MediaError: it cannot.
    """
    family = load_family(cfg.model._target_)
    cfg.output.format = chosen_format(cfg.output.format, is_film=family.makes_films)
    if family.makes_films:
        check_film_output(cfg.output.format, has_sound=family.makes_sound)
