"""From the configuration to requests: every mistake that needs neither torch nor the checkpoint is found here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Set
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffuse.config import compose as configuration
from diffuse.config import inputs, objective, prompt_syntax
from diffuse.config.compose import Values, explained, nearest, options
from diffuse.config.inputs import Inputs
from diffuse.errors import ConfigError
from diffuse.media.images import PictureInput, Reader
from diffuse.schedulers import options as sampler_options
from diffuse.schema import COMPONENTS, SEED_LIMIT, GenerationRequest, LongPrompt, PromptSyntax

DRAWN_BELOW = 2**32  # a drawn seed is short enough to be typed again

_FIELDS = tuple(field.name for field in fields(GenerationRequest))
_OPTIONAL = {field.name: field.default for field in fields(GenerationRequest) if field.default is not MISSING}
_TEXTS = ("negative_prompt", "prompt_2", "negative_prompt_2")
_CHOICES = {"long_prompt": LongPrompt, "prompt_syntax": PromptSyntax}
_COUNTS = {  # whole numbers that may be left open, and the least they can be
    "original_width": 1,
    "original_height": 1,
    "crop_left": 0,
    "crop_top": 0,
    "target_width": 1,
    "target_height": 1,
}


@dataclass(frozen=True)
class Draft:
    """A request whose size may still be the checkpoint's own."""

    prompt: str
    seed: int
    width: int | None
    height: int | None
    others: Mapping[str, Any]  # every other field of a request
    inputs: Inputs | None = None  # what it starts from
    reference: PictureInput | None = None  # what it is to come near to

    def request(self, default_size: tuple[int, int]) -> GenerationRequest:
        """The request, with `default_size` (width, height in pixels) where none was given."""
        width, height = default_size
        return GenerationRequest(
            prompt=self.prompt,
            seed=self.seed,
            width=self.width or width,
            height=self.height or height,
            **self.others,
        )


def refuse_unknown(draft: Draft, known: Set[str], model: str) -> None:
    """Raises ConfigError for a field that is set and that the model's family does not know, see `GenerationRequest`."""
    for name, default in _OPTIONAL.items():
        if name not in known and draft.others[name] != default:
            has = ", ".join(sorted(known))
            given = draft.others[name]
            shown = given.name if isinstance(given, Enum) else given
            raise ConfigError(f"{name}={shown}: model={model} knows no {name}; beside the common it has {has}")


def drafts(
    cfg: DictConfig,
    in_memory: Mapping[str, Any] | None = None,
    reader: Reader | None = None,
    resolved: Values | None = None,
) -> list[Draft]:
    """What `cfg` asks for: one draft, or one for each prompt of `prompt_file`. Draws a seed where none is given.

    `in_memory` has by field the pictures that are in no file, see `inputs.read`. `reader` has read those of others.
    `resolved` is what `configuration.resolved` makes of `cfg`, where that is known already.

    Raises:
        ConfigError: a value is missing, out of range, or does not go with another.
    """
    if cfg.suite is not None:
        raise ConfigError(f"suite={cfg.suite.name}: is run by the command alone: diffuse experiment={cfg.suite.name}")
    with explained():
        given = configuration.resolved(cfg) if resolved is None else resolved
        defaults = {**given.model.request_defaults, **given.refiner.request_defaults}
        check_targets(given)
        sampler_options.check_options(
            {key: value for key, value in given.scheduler.items() if key not in ("_target_", "name")}
        )
        values = _filled(given, defaults)
        _check_values(values, given)
        reader = reader or Reader()
        read = inputs.read({name: given[name] for name in inputs.FIELDS}, values, in_memory, reader)
        if read is not None:
            width, height = read.size(given.model.size_multiple)
            values |= {"width": given.width or width, "height": given.height or height}
        width, height = values.pop("width"), values.pop("height")
        prompts = _prompts(given, defaults)
        if values["prompt_syntax"] is PromptSyntax.weighted:
            for name, text in [*(("prompt", prompt) for prompt in prompts), *((name, values[name]) for name in _TEXTS)]:
                prompt_syntax.parse(text or "", name)
        others = {name: value for name, value in values.items() if name not in ("prompt", "seed")}
        reference = objective.read(given.objective, reader)
        return [
            Draft(prompt, _seed(given.seed, given.num_images), width, height, others, read, reference)
            for prompt in prompts
        ]


def check_targets(cfg: DictConfig | Values) -> None:
    """Refuses a model or scheduler that is no class of this package, wherever the configuration came from.

    Raises:
        ConfigError: naming the class; or there is no `model.source`.
    """
    rooms = {"model": "diffuse.pipelines.", "refiner": "diffuse.pipelines.", "scheduler": "diffuse.schedulers."}
    for group, room in rooms.items():
        node = cfg[group]
        if not isinstance(node, DictConfig | Values):
            raise ConfigError(f"{group}={node}: there is no such {group}; there are {', '.join(options(group))}")
        if group == "refiner" and node._target_ is None:
            continue
        target = str(node.get("_target_", ""))
        if not target.startswith(room) or not all(part.isidentifier() for part in target.split(".")):
            raise ConfigError(
                f"{group}._target_={target}: should be a class in {room.rstrip('.')}, as conf/{group} has"
            )
    profiles = options("memory_profile")
    for name in map(str, cfg.model.min_vram_gib):
        if name not in profiles:
            raise ConfigError(f"model.min_vram_gib.{name}: there is no such memory profile{nearest(name, profiles)}")
    for group in ("model", "refiner"):
        _check_sources(cfg[group], group)


def _check_sources(model: DictConfig | Values, group: str) -> None:
    """Refuses a model without a source, and settings of a source that is not there."""
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


def _filled(cfg: Values, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a request, with the model's default where the configuration has null."""
    for name in defaults:
        if name not in _FIELDS:
            raise ConfigError(
                f"model.request_defaults.{name}: a request has no such field{nearest(str(name), _FIELDS)}"
            )
    values = {name: cfg[name] if cfg[name] is not None else defaults.get(name) for name in _FIELDS}
    for name, default in _OPTIONAL.items():
        if values[name] is None:
            values[name] = default
    for name in _TEXTS:
        if values[name] is not None:
            values[name] = _text(name, str(values[name]))
    for name, choices in _CHOICES.items():
        values[name] = _choice(name, values[name], choices)
    if values["timesteps"] is not None:
        values["timesteps"] = timesteps = tuple(values["timesteps"])
        if not timesteps:
            raise ConfigError("timesteps=[]: should be those to visit, such as [999,749,499,249]")
        if cfg.num_inference_steps not in (None, len(timesteps)):
            raise ConfigError(
                f"num_inference_steps={cfg.num_inference_steps}: timesteps says {len(timesteps)} of them; leave one out"
            )
        values["num_inference_steps"] = len(timesteps)
    return values


def _choice(name: str, value: Any, choices: type[Enum]) -> Enum:
    """One of `choices`, which a model's defaults name as text."""
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(choice.name for choice in choices)
        raise ConfigError(f"{name}={value}: should be one of {known}") from None


def _text(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # how Python hands over bytes of the command line that are not UTF-8
        raise ConfigError(f"{name}: holds bytes that are not UTF-8 text; give it in UTF-8") from None
    return value


def _check_values(values: Mapping[str, Any], cfg: Values) -> None:
    _whole("num_images", values["num_images"], 1)
    _whole("num_inference_steps", values["num_inference_steps"], 1)
    multiple = cfg.model.size_multiple
    if multiple < 1:
        raise ConfigError(f"model.size_multiple={multiple}: should be 1 or more")
    for name in ("width", "height"):
        value = values[name]
        if value is None:
            continue
        _whole(name, value, 1)
        if value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise ConfigError(
                f"{name}={value}: should be a multiple of {multiple} for model={cfg.model.name}; try {near}"
            )
    for name, least in _COUNTS.items():
        if values[name] is not None:
            _whole(name, values[name], least)
    _number("guidance_scale", values["guidance_scale"], math.inf, "of 0 or more; 0 and 1 switch guidance off")
    _number("guidance_rescale", values["guidance_rescale"], 1, "from 0 to 1")
    end = values["denoising_end"]
    if end is not None:
        if cfg.refiner._target_ is None:
            raise ConfigError(f"denoising_end={end}: is when a refiner takes over; add refiner=sdxl")
        if isinstance(end, bool) or not isinstance(end, int | float) or not 0 < end < 1:
            raise ConfigError(f"denoising_end={end}: should be a number between 0 and 1")
    for name in ("aesthetic_score", "negative_aesthetic_score"):
        if values[name] is not None:
            _number(name, values[name], 10, "from 0 to 10")
    for name, least in (("batch_size", 1), ("batch_pixels", 1), ("cleanup_every", 0), ("max_side", 1)):
        if cfg.memory_profile[name] is not None:
            _whole(f"memory_profile.{name}", cfg.memory_profile[name], least)
    if not 1 <= cfg.output.quality <= 100:
        raise ConfigError(f"output.quality={cfg.output.quality}: should be from 1 to 100")
    if not str(cfg.output.dir):
        raise ConfigError("output.dir is empty: give a folder")


def _whole(name: str, value: Any, least: int) -> None:
    if value is None:
        raise ConfigError(f"{name} is not set, and the model has no default: add {name}=...")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value}: should be a whole number of {least} or more")


def _number(name: str, value: Any, most: float, wanted: str) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value <= most
    ):
        raise ConfigError(f"{name}={value}: should be a number {wanted}")


def _seed(seed: int | None, num_images: int) -> int:
    if seed is None:
        return secrets.randbelow(DRAWN_BELOW)
    if not 0 <= seed <= SEED_LIMIT - num_images:
        last = f" for {num_images} images" if num_images > 1 else ""
        raise ConfigError(f"seed={seed}: should be from 0 to {SEED_LIMIT - num_images}{last}")
    return seed


def _prompts(cfg: Values, defaults: Mapping[str, Any]) -> list[str]:
    if cfg.prompt_file is None:
        prompt = cfg.prompt if cfg.prompt is not None else defaults.get("prompt")
        if prompt is None:
            raise ConfigError('prompt is not set: add prompt="what the picture shows"')
        return [_text("prompt", str(prompt))]
    if cfg.prompt is not None:
        raise ConfigError("prompt and prompt_file are both set: leave one of them out")
    return prompts_in(cfg.prompt_file)


def prompts_in(file: str) -> list[str]:
    """The prompts of a text file, one a line. Raises ConfigError where it cannot be read, or holds none."""
    path = Path(file).expanduser()
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
