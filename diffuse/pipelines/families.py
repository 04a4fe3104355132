"""The pipeline classes that a configuration names, and the components that they need."""

from __future__ import annotations

import importlib
from typing import Any, cast

from omegaconf import DictConfig

from diffuse.config.checks import check_target
from diffuse.errors import ConfigError
from diffuse.media.formats import check_film_output, chosen_format
from diffuse.pipelines.pipeline import ModelPipeline


def models(cfg: DictConfig) -> list[DictConfig]:
    """Returns the configurations of the models that make an image, one after the other."""
    return [cfg.model] if cfg.refiner._target_ is None else [cfg.model, cfg.refiner]


def component_names(cfg: DictConfig) -> dict[str, tuple[str, ...]]:
    """Returns for each of the groups `model` and `refiner` the folders of a checkpoint that it needs."""
    return {
        group: (*load_family(model._target_).components, "scheduler")
        for group, model in zip(("model", "refiner"), models(cfg), strict=False)
    }


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
