"""From the configuration to requests, in four steps: resolve, fill, check, read.

Every mistake that needs neither torch nor the checkpoint is found here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from typing import Any

from omegaconf import DictConfig

from diffuse.config.checks import check_prompt, check_request, given_steps
from diffuse.config.compose import ConfigValues, resolve_config
from diffuse.config.inputs import (
    Inputs,
    check_file_name,
    check_last_image,
    fill_input_fields,
    read_clip_frames,
    read_inputs,
)
from diffuse.config.mistakes import explain_errors, suggestion
from diffuse.config.objective import Reference, read_reference
from diffuse.errors import ConfigError
from diffuse.media.images import InputImageCache
from diffuse.paths import user_path
from diffuse.schema import PROMPT_FIELDS, REQUEST_FIELDS, GenerationRequest

DRAWN_SEEDS = 2**32  # a drawn seed is below it: short enough to be typed again

# Fields that a configuration always says, so that no default of a model is ever asked for.
SET_FIELDS = {name: each.config_default for name, each in REQUEST_FIELDS.items() if each.config_default is not None}

_NAMES = tuple(REQUEST_FIELDS)
_DEFAULTS = {name: each.default for name, each in REQUEST_FIELDS.items() if each.default not in (MISSING, None)}
_CHOICES = {name: each.type for name, each in REQUEST_FIELDS.items() if each.choices}


@dataclass(frozen=True)
class RequestDraft:
    """A checked request whose size may still be the checkpoint's own."""

    prompt: str
    seed: int
    width: int | None
    height: int | None
    fields: Mapping[str, Any]  # every other field of a request
    inputs: Inputs | None = None  # images to start from
    reference: Reference | None = None  # what quality is measured against

    def request(self, default_size: tuple[int, int] | None) -> GenerationRequest:
        """Returns the request, with `default_size` (width, height in pixels) where none was given.

        Raises:
            ConfigError: there is neither.
        """
        if default_size is None and not (self.width and self.height):
            raise ConfigError("width and height: this checkpoint does not say its size; give both, as in width=512")
        width, height = default_size or (0, 0)
        return GenerationRequest(
            prompt=self.prompt,
            seed=self.seed,
            width=self.width or width,
            height=self.height or height,
            **self.fields,
        )


def draft_requests(
    cfg: DictConfig,
    in_memory: Mapping[str, Any] | None = None,
    reader: InputImageCache | None = None,
    values: ConfigValues | None = None,
) -> list[RequestDraft]:
    """Returns the request of `cfg` as a list of one, or one request for each prompt of `prompt_file`.

    Draws a seed where none is given.

    Args:
        cfg: a composed configuration.
        in_memory: by field, the images that are in no file, see `inputs.read_inputs`.
        reader: keeps the images that other requests start from too.
        values: `resolve_config(cfg)`, where the caller has it already.

    Raises:
        ConfigError: a value is missing, out of range, or does not go with another.
        MediaError: an input image cannot be read.
    """
    if cfg.suite is not None:
        raise ConfigError(f"suite={cfg.suite.name}: is run by the command alone: diffuse experiment={cfg.suite.name}")
    with explain_errors():
        config = resolve_config(cfg) if values is None else values
        fields = fill_defaults(config)
        check_request(fields, config)
        return read_files(fields, config, in_memory, reader or InputImageCache())


def fill_defaults(config: ConfigValues) -> dict[str, Any]:
    """Returns every field of a request in its own type: the user's value, else the model's, else the field's default.

    Raises:
        ConfigError: the model has a default for a field that does not exist, or it is none of the field's choices.
    """
    for group in ("model", "refiner"):
        for name, value in config[group].request_defaults.items():
            _check_default(f"{group}.request_defaults.{name}", str(name), value)
    defaults = {**config.model.request_defaults, **config.refiner.request_defaults}
    fields = {name: defaults.get(name) if config[name] is None else config[name] for name in _NAMES}
    for name, default in _DEFAULTS.items():
        if fields[name] is None:
            fields[name] = default
    for name, choices in _CHOICES.items():
        if fields[name] is not None:
            fields[name] = _choice(name, fields[name], choices)
    for name in PROMPT_FIELDS:
        if fields[name] is not None:
            fields[name] = str(fields[name])
    if fields["stg_blocks"] is not None:
        fields["stg_blocks"] = tuple(fields["stg_blocks"])
    for name in ("timesteps", "sigmas"):
        given = fields[name]
        if given is not None:
            fields[name] = tuple(given)
            fields["num_inference_steps"] = given_steps(name, given)
    fill_input_fields(fields, has_strength=defaults.get("strength", True) is not None)
    return fields


def _check_default(where: str, name: str, value: Any) -> None:
    """Raises ConfigError for a model's default that no request can take."""
    if name not in REQUEST_FIELDS:
        raise ConfigError(f"{where}: a request has no such field{suggestion(name, _NAMES)}")
    if name in SET_FIELDS:
        own = str(SET_FIELDS[name]).lower()
        raise ConfigError(f"{where}: has no effect, since the configuration says {name}={own}; set {name} there")
    if isinstance(value, dict):
        raise ConfigError(f"{where}: should be one value, and holds several by name")
    if isinstance(value, list) and name in PROMPT_FIELDS:
        raise ConfigError(f"{where}: should be a text, and is a list")


def read_files(
    fields: Mapping[str, Any], config: ConfigValues, in_memory: Mapping[str, Any] | None, reader: InputImageCache
) -> list[RequestDraft]:
    """Reads the files that checked fields name, and returns the drafts: one for each prompt.

    The size of an input image stands for a width and height that the user has not given.

    Raises:
        ConfigError: a file of prompts cannot be read, or images do not fit together.
        MediaError: an image cannot be read.
    """
    others = dict(fields)
    prompt, seed, width, height = (others.pop(name) for name in ("prompt", "seed", "width", "height"))
    inputs = read_inputs(fields, in_memory, reader)
    if inputs is not None:
        check_last_image(inputs, fields, config)
        image_width, image_height = inputs.size(config.model.size_multiple)
        width, height = config.width or image_width, config.height or image_height
        inputs = read_clip_frames(inputs, others, config, (width, height))
    prompts = [prompt]
    if config.prompt_file is not None:
        prompts = read_prompt_file(config.prompt_file)
        for each in prompts:
            check_prompt("prompt", each, fields["prompt_syntax"])
    reference = read_reference(config.objective, reader)
    return [
        RequestDraft(
            each, secrets.randbelow(DRAWN_SEEDS) if seed is None else seed, width, height, others, inputs, reference
        )
        for each in prompts
    ]


def read_prompt_file(file: str) -> list[str]:
    """Returns the prompts of a text file, one a line.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    check_file_name("prompt_file", file)
    path = user_path(file, "prompt_file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"prompt_file={path}: is not UTF-8 text; save it as that") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"prompt_file={path}: cannot be read: {reason}; give a text file, one prompt a line"
        ) from None
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ConfigError(f"prompt_file={path}: holds no prompt; write one a line")
    return prompts


def _choice(name: str, value: Any, choices: type[Enum]) -> Enum:
    """Returns one of `choices`, which a configuration names as text."""
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(choice.name for choice in choices)
        raise ConfigError(f"{name}={value}: should be one of {known}") from None
