"""`model=auto`: which family a checkpoint is of stands in its `model_index.json`, and the family's configuration is
composed in place of `conf/model/auto.yaml`. What is recorded is that configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.locate import model_index
from diffuse.checkpoints.source import Source
from diffuse.config import compose as configuration
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schema import Download

AUTO = "model=auto"

# The pipeline that a checkpoint names itself after -> the option of conf/model that runs it. Whether it starts from a
# prompt or a picture is a matter of the request here.
_FAMILIES = {
    "StableDiffusionPipeline": "sd21",
    "StableDiffusionImg2ImgPipeline": "sd21",
    "StableDiffusionInpaintPipeline": "sd21",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
_REFINERS = {"sdxl": "sdxl_refiner"}


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Composes the configuration that `diffuse OVERRIDES` would run, `model=auto` among them.

    Raises:
        ConfigError: as `config.compose.compose`.
        ConfigError, CheckpointError: as `resolve`.
    """
    return configuration.compose(resolve(overrides))


def resolve(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with the checkpoint's own family for `model=auto`.

    Raises:
        ConfigError: `model.source` is missing.
        CheckpointError: the checkpoint is not there, or of a family that is not implemented.
    """
    if AUTO not in overrides:
        return list(overrides)
    values = {name: value for name, _, value in (override.partition("=") for override in overrides)}
    source, revision = (_text(values.get(f"model.{name}")) for name in ("source", "revision"))
    if source is None:
        raise ConfigError(f"{AUTO}: reads from a checkpoint what it is; add model.source=FOLDER or OWNER/NAME")
    # A value that is none of them is refused when the configuration is composed.
    consent = Download.__members__.get(values.get("model.download", ""), Download.ask)
    model = f"model={family(model_index(Source(source, revision), consent), source)}"
    return [model if override == AUTO else override for override in overrides]


def family(index: Mapping[str, Any], source: str) -> str:
    """The option of `conf/model` that runs a checkpoint with this `model_index.json`.

    Raises:
        CheckpointError: there is none.
    """
    name = str(index.get("_class_name"))
    option = _FAMILIES.get(name)
    if option is None:
        raise CheckpointError(
            f"{source}: is of the family {name}, which is not implemented; these are: {', '.join(_FAMILIES)}"
        )
    return _REFINERS.get(option, option) if index.get("requires_aesthetics_score") else option


def _text(value: str | None) -> str | None:
    """An override's value as the grammar takes it: null is none at all, and quotes are not its own."""
    if value in (None, "", "null"):
        return None
    assert value is not None
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
