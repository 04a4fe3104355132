"""`model=auto`: reads the family of a checkpoint from its `model_index.json`.

The family's own configuration is composed in place of `conf/model/auto.yaml`, and that is what is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.layout import PICKLES, SINGLE
from diffuse.checkpoints.locate import model_index
from diffuse.checkpoints.source import Source
from diffuse.config.compose import compose_config
from diffuse.config.groups import SHIPPED, conf_dir
from diffuse.config.hydra_settings import check_hydra_overrides
from diffuse.config.own import own_config
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schema import Download

AUTO = "model=auto"

# The pipeline class that a checkpoint names -> the option of conf/model that runs it. Here the request says whether it
# starts from a prompt or an image.
_FAMILIES = {
    "StableDiffusionPipeline": "sd21",
    "StableDiffusionImg2ImgPipeline": "sd21",
    "StableDiffusionInpaintPipeline": "sd21",
    "StableDiffusionInpaintPipelineLegacy": "sd21",  # its denoiser is not shown the mask
    "LatentConsistencyModelPipeline": "lcm",
    "LatentConsistencyModelImg2ImgPipeline": "lcm",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "LTX2Pipeline": "ltx2",
    "LTX2ImageToVideoPipeline": "ltx2",
    "LTX2ConditionPipeline": "ltx2",
}
# A component by whose class a version of a family is recognised -> its option.
_VERSIONS = {"ltx2": ("vocoder", {"LTX2VocoderWithBWE": "ltx2_3"})}
_REFINERS = {"sdxl": "sdxl_refiner"}
_OWN = "_diffuse_model"  # the option of a checkpoint that ships, whose usual size is not its family's
# What others do, which is not implemented: part of the class's name -> the words for it. The first that fits is said.
_OTHERS = {
    "Onnx": "has its weights for ONNX Runtime",
    "Flax": "has its weights for JAX",
    "ControlNet": "is steered by a further picture through a ControlNet",
    "Adapter": "is steered by a further picture through an adapter",
    "InstructPix2Pix": "changes a picture as an instruction says (InstructPix2Pix)",
    "Depth2Img": "starts from a picture and a map of its depth",
    "LatentUpscale": "enlarges latents",
    "Upscale": "enlarges a picture",
    "ImageVariation": "varies a picture, without a prompt",
    "UnCLIP": "starts from the embedding of a picture",
    "GLIGEN": "places things in boxes",
    "AnimateDiff": "makes videos",
    "Video": "makes videos",
}


def compose_model(overrides: Sequence[str] = ()) -> DictConfig:
    """Composes the configuration that `diffuse OVERRIDES` would run, `model=auto` among them.

    Raises:
        ConfigError: as `compose_config`.
        ConfigError, CheckpointError: as `resolve_model`.
    """
    check_hydra_overrides(overrides, sweep=False)
    return compose_config(resolve_model(overrides))


def with_auto(overrides: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Returns the overrides with `model=auto` where single files are the sources, and nothing chooses the model."""
    files = [source for source in sources if source.lower().endswith((*SINGLE, *PICKLES)) and "${" not in source]
    if not files or len(files) < len(sources) or _chooses_model(overrides):
        return list(overrides)
    return [*overrides, AUTO]


def _chooses_model(overrides: Sequence[str]) -> bool:
    """Tells whether an override, an experiment or one of the user's files says which option of `model` it is."""
    values = {name: value for name, _, value in (override.partition("=") for override in overrides)}
    if {"model", "+model", "++model", "~model"} & values.keys():
        return True
    if any(entry.group == "model" for file in own_config().files.values() for entry in file.defaults()):
        return True
    experiment = conf_dir() / "experiment" / f"{values.get('experiment', '')}.yaml"
    return experiment.is_file() and "override /model:" in experiment.read_text(encoding="utf-8")


def resolve_model(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with the checkpoint's own family for `model=auto`, which is usual for a single file.

    Raises:
        ConfigError, CheckpointError: as `read_option`.
    """
    values = {name: value for name, _, value in (override.partition("=") for override in overrides)}
    source = _text(values.get("model.source"))
    overrides = with_auto(overrides, [source] if source else [])
    if AUTO not in overrides:
        return overrides
    model = f"model={read_option(source, overrides)}"
    return [model if override == AUTO else override for override in overrides]


def read_option(source: str | None, overrides: Sequence[str]) -> str:
    """Returns the option of `conf/model` that runs the checkpoint `source`.

    Args:
        overrides: those that say which revision it is, and whether it may be fetched.

    Raises:
        ConfigError: there is no source.
        CheckpointError: the checkpoint is not there, or of a family that is not implemented.
    """
    if source is None:
        raise ConfigError(f"{AUTO}: reads from a checkpoint what it is; add model.source=FOLDER or OWNER/NAME")
    values = {name: value for name, _, value in (override.partition("=") for override in overrides)}
    # A value that is none of them is refused when the configuration is composed.
    consent = Download.__members__.get(values.get("model.download", ""), Download.ask)
    return family_option(model_index(Source(source, _text(values.get("model.revision"))), consent), source)


def family_option(index: Mapping[str, Any], source: str) -> str:
    """Returns the option of `conf/model` that runs a checkpoint with this `model_index.json`.

    Raises:
        CheckpointError: there is none.
    """
    if (own := str(index.get(_OWN))) in SHIPPED:
        return own
    name = str(index.get("_class_name"))
    option = _FAMILIES.get(name)
    if option is None:
        does = next((f"which {does}; that" for part, does in _OTHERS.items() if part in name), "which")
        raise CheckpointError(
            f"{source}: is of the family {name}, {does} is not implemented; these are: {', '.join(_FAMILIES)}"
        )
    component, versions = _VERSIONS.get(option, ("", {}))
    entry = index.get(component)
    if isinstance(entry, list) and entry:
        option = versions.get(str(entry[-1]), option)
    return _REFINERS.get(option, option) if index.get("requires_aesthetics_score") else option


def _text(value: str | None) -> str | None:
    """Returns an override's value as Hydra's grammar reads it: None for null, and without its quotes."""
    if value in (None, "", "null"):
        return None
    assert value is not None
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
