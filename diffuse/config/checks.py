"""Checks a request's values: their types, ranges and combinations, and the classes that the configuration names.

No torch, no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING
from enum import Enum
from typing import Any

from omegaconf import DictConfig

from diffuse.config import prompt_syntax
from diffuse.config.compose import ConfigValues
from diffuse.config.embedding import EMBEDDINGS_LIST
from diffuse.config.groups import group_options
from diffuse.config.inputs import check_input_fields
from diffuse.config.lora import read_lora
from diffuse.config.mistakes import suggestion
from diffuse.config.tracking_settings import check_tracking
from diffuse.errors import ConfigError
from diffuse.schedulers.options import check_options, without_end
from diffuse.schema import COMPONENTS, PROMPT_FIELDS, REQUEST_FIELDS, SEED_LIMIT, PromptSyntax, RequestField

# The room in which the class of each group must be: no other class is ever imported or called.
TARGET_ROOMS = {"model": "diffuse.pipelines", "refiner": "diffuse.pipelines", "scheduler": "diffuse.schedulers"}


def bounds(field: RequestField) -> str:
    """Returns the allowed range in words, such as `from 0 to 1`; empty where all values are allowed."""
    if field.above is not None:
        return (
            f"between {field.above} and {field.below}"
            if field.most is None
            else f"above {field.above}, up to {field.most}"
        )
    if field.least is None:
        return ""
    return f"of {field.least} or more" if field.most is None else f"from {field.least} to {field.most}"


# The seed's range depends on num_images.
_NUMBERS = [each for each in REQUEST_FIELDS.values() if bounds(each) and each.name != "seed"]
_OPTIONAL = {name: each.default for name, each in REQUEST_FIELDS.items() if each.default is not MISSING}
_PROFILE_COUNTS = (
    ("batch_size", 1),
    ("batch_pixels", 1),
    ("cleanup_every", 0),
    ("resident_blocks", 0),
    ("max_side", 1),
    ("max_frames", 1),
    ("vae_tile_size", 1),
    ("vae_tile_frames", 2),
    ("vae_tile_overlap", 1),
)
_PROFILE_BUDGETS = ("budget_gib", "host_gib")
# What the ends of a range do, which is what somebody wants who goes beyond them.
_HINTS = {
    "guidance_scale": "0 and 1 switch guidance off",
    "guidance_rescale": "0 leaves the contrast as guidance makes it",
    "strength": "1 forgets the input picture, and nothing goes beyond that",
    "conditioning_strength": "1 keeps what is given as it is; leave the picture out where it is not to count",
    "last_image_strength": "1 keeps the picture as it is; leave it out where it is not to count",
    "clip_skip": "0 or null leaves out none, 1 the last layer",
}


# What a model of films has instead of a field of pictures.
_OF_FILMS = {"strength": "conditioning_strength says how far it keeps a picture; "}
_GIVEN_STEPS = {"timesteps": "[999,749,499,249]", "sigmas": "[14.6,3.9,1.4,0.4]"}


def check_request(fields: Mapping[str, Any], config: ConfigValues) -> None:
    """Checks the filled fields of a request, and what goes with them in the configuration.

    Raises:
        ConfigError: a value is missing, out of range, or does not go with another.
    """
    check_targets(config)
    read_lora(config.lora)
    EMBEDDINGS_LIST.read(config.embedding)
    check_options({key: value for key, value in config.scheduler.items() if key not in ("_target_", "name")})
    _check_given_steps(fields, config.num_inference_steps)
    for field in _NUMBERS:
        check_number(field, fields[field.name])
    where = "model.request_defaults.seed" if config.seed is None else "seed"
    _check_seed(fields["seed"], fields["num_images"], where)
    _check_size(fields, config)
    if fields["denoising_end"] is not None and config.refiner._target_ is None:
        raise ConfigError(f"denoising_end={fields['denoising_end']}: is when a refiner takes over; add refiner=sdxl")
    _check_prompts(fields, config)
    check_input_fields(fields, config)
    for name, least in _PROFILE_COUNTS:
        value = config.memory_profile[name]
        if value is not None and value < least:
            raise ConfigError(f"memory_profile.{name}={value}: should be a whole number of {least} or more")
    tile, overlap = (config.memory_profile[name] for name in ("vae_tile_size", "vae_tile_overlap"))
    if overlap is not None and overlap >= tile:
        raise ConfigError(
            f"memory_profile.vae_tile_overlap={overlap}: should be less than memory_profile.vae_tile_size={tile}"
        )
    size = config.memory_profile.max_film_size
    if size is not None and not (len(size) == 2 and min(size) >= 1):
        shown = "[" + ",".join(map(str, size)) + "]"
        raise ConfigError(
            f"memory_profile.max_film_size={shown}: should be the longer and the shorter side, such as [1280,720]"
        )
    for name in _PROFILE_BUDGETS:
        value = config.memory_profile[name]
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"memory_profile.{name}={value:g}: should be a number of GiB above 0, such as 6")
    if not 1 <= config.output.quality <= 100:
        raise ConfigError(f"output.quality={config.output.quality}: should be from 1 to 100")
    check_tracking(config.tracking)
    if not str(config.output.dir):
        raise ConfigError("output.dir is empty: give a folder")


def check_number(field: RequestField, value: Any) -> None:
    """Checks that a value is a number of the field's type and range, or None where the request may hold that.

    Raises:
        ConfigError: it is not.
    """
    if value is None:
        if field.optional or field.name in ("width", "height"):  # a size may be the checkpoint's own
            return
        raise ConfigError(f"{field.name} is not set, and the model has no default: add {field.name}=...")
    is_number = isinstance(value, int if field.type is int else int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and _within(field, value)):
        kind = "whole number" if field.type is int else "number"
        hint = f"; {_HINTS[field.name]}" if field.name in _HINTS else ""
        raise ConfigError(f"{field.name}={value}: should be a {kind} {bounds(field)}{hint}")


def check_request_defaults(cfg: DictConfig) -> None:
    """Checks that a model's defaults are of fields that there are, and that numbers are of their type and range.

    Raises:
        ConfigError: one is not.
    """
    for name, value in cfg.model.request_defaults.items():
        if name not in REQUEST_FIELDS:
            near = suggestion(str(name), tuple(REQUEST_FIELDS))
            raise ConfigError(f"model.request_defaults.{name}: a request has no such field{near}")
        if REQUEST_FIELDS[name] in _NUMBERS:
            check_number(REQUEST_FIELDS[name], value)


def _within(field: RequestField, value: float) -> bool:
    return (
        (field.least is None or value >= field.least)
        and (field.most is None or value <= field.most)
        and (field.above is None or value > field.above)
        and (field.below is None or value < field.below)
    )


def check_known_fields(fields: Mapping[str, Any], known: Set[str], model: str) -> None:
    """Checks that every field that is set is one that the model's family knows, see `GenerationRequest`.

    Args:
        fields: the filled fields of the request.
        known: names of fields with a default, from the pipeline's `request_fields`.
        model: the option's name, for the message.

    Raises:
        ConfigError: the family does not know a field.
    """
    for name, default in _OPTIONAL.items():
        value = fields[name]
        if name not in known and value != default:
            shown = value.name if isinstance(value, Enum) else value
            others = ", ".join(sorted(known))
            near = _OF_FILMS.get(name, "") if "conditioning_strength" in known else ""
            raise ConfigError(f"{name}={shown}: model={model} knows no {name}; {near}beside the common it has {others}")


def check_targets(config: DictConfig | ConfigValues) -> None:
    """Checks that model, refiner and scheduler are classes of this package, wherever the configuration came from.

    Raises:
        ConfigError: one is not, and the message names it; or there is no `model.source`.
    """
    for group in TARGET_ROOMS:
        node = config[group]
        if not isinstance(node, DictConfig | ConfigValues):
            raise ConfigError(f"{group}={node}: there is no such {group}; there are {', '.join(group_options(group))}")
        if group != "refiner" or node._target_ is not None:
            check_target(group, node.get("_target_", ""))
    profiles = group_options("memory_profile")
    for name in map(str, config.model.min_vram_gib):
        if name not in profiles:
            raise ConfigError(f"model.min_vram_gib.{name}: there is no such memory profile{suggestion(name, profiles)}")
    for group in ("model", "refiner"):
        _check_sources(config[group], group)


def check_target(group: str, target: object) -> None:
    """Checks that `GROUP._target_` names something in the one room of this package that the group's classes are in.

    Raises:
        ConfigError: it does not.
    """
    room = TARGET_ROOMS[group]
    name = str(target)
    if not name.startswith(f"{room}.") or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{group}._target_={name}: should be a class in {room}, as conf/{group} has")


def _check_sources(model: DictConfig | ConfigValues, group: str) -> None:
    """Raises ConfigError for a model without a source, and for settings of a source that is not set."""
    parts = {f"{group}.{name}": model[name] for name in COMPONENTS}
    if model._target_ is None:
        for name, part in {group: model, **parts}.items():
            if part.source is not None:
                raise ConfigError(f"{name}.source={part.source}: there is no {group}; choose one, such as {group}=sdxl")
    elif not model.source:
        raise ConfigError(
            f"{group}.source is not set: a folder in the diffusers layout, or a hub repository OWNER/NAME"
        )
    for name, part in parts.items():
        for field in ("revision", "variant"):
            if part[field] is not None and part.source is None:
                raise ConfigError(f"{name}.{field}={part[field]}: is that of {name}.source, which is not set")


def _check_seed(seed: Any, num_images: int, where: str) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | None):  # a model's default is of any type
        raise ConfigError(f"{where}={str(seed).lower()}: should be a whole number")
    if seed is not None and not 0 <= seed <= SEED_LIMIT - num_images:
        last = f" for {num_images} images" if num_images > 1 else ""
        raise ConfigError(f"seed={seed}: should be from 0 to {SEED_LIMIT - num_images}{last}")


def _check_size(fields: Mapping[str, Any], config: ConfigValues) -> None:
    multiple = config.model.size_multiple
    if multiple < 1:
        raise ConfigError(f"model.size_multiple={multiple}: should be 1 or more")
    for name in ("width", "height"):
        value = fields[name]
        if value is not None and value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise ConfigError(
                f"{name}={value}: should be a multiple of {multiple} for model={config.model.name}; try {near}"
            )


def given_steps(name: str, values: Sequence[float]) -> int:
    """Returns how many steps given timesteps or sigmas make; a sigma of 0 at the end is where the last one leads."""
    return len(without_end(values) if name == "sigmas" else values)


def _check_given_steps(fields: Mapping[str, Any], steps: int | None) -> None:
    given = [name for name in _GIVEN_STEPS if fields[name] is not None]
    if len(given) > 1:
        raise ConfigError("timesteps and sigmas are both set: leave one of them out")
    for name in given:
        if not fields[name]:
            raise ConfigError(f"{name}=[]: should be those to visit, such as {_GIVEN_STEPS[name]}")
        count = given_steps(name, fields[name])
        if steps not in (None, count):
            raise ConfigError(f"num_inference_steps={steps}: {name} says {count} of them; leave one out")


def _check_prompts(fields: Mapping[str, Any], config: ConfigValues) -> None:
    if config.prompt is not None and config.prompt_file is not None:
        raise ConfigError("prompt and prompt_file are both set: leave one of them out")
    if fields["prompt"] is None and config.prompt_file is None:
        raise ConfigError('prompt is not set: add prompt="what the picture shows"')
    for name in PROMPT_FIELDS:
        if fields[name] is not None:
            check_prompt(name, fields[name], fields["prompt_syntax"])


def check_prompt(name: str, text: str, syntax: PromptSyntax) -> None:
    """Checks that a prompt, the field `name`, is UTF-8 text and can be read by its syntax.

    Raises:
        ConfigError: it is not, or a bracket or a weight in it is wrong.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # how Python hands over bytes of the command line that are not UTF-8
        raise ConfigError(f"{name}: holds bytes that are not UTF-8 text; give it in UTF-8") from None
    if syntax is PromptSyntax.weighted:
        prompt_syntax.parse_prompt(text, name)
