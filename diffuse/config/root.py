"""The root of the configuration, of the request's fields and the groups."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.config.interpolations import explain_interpolation
from diffuse.errors import ConfigError
from diffuse.schema import (
    LEFT_TO_AUTO,
    MISSING,
    REQUEST_FIELDS,
    HardwareConfig,
    MemoryProfileConfig,
    ModelConfig,
    ObjectiveConfig,
    OutputConfig,
    RefinerConfig,
    ReportConfig,
    Suite,
    TextBackendConfig,
    TrackingConfig,
)

ConfigClass = TypeVar("ConfigClass", bound=type)

OmegaConf.register_new_resolver(
    LEFT_TO_AUTO, lambda value: OmegaConf.create(value) if isinstance(value, list) else value, replace=True
)


def _with_request_fields(config: ConfigClass) -> ConfigClass:
    """Adds the request fields before the class's own, but for `prompt_file`, which follows `prompt`."""
    types = {name: each.config_type for name, each in REQUEST_FIELDS.items()}
    order = dict.fromkeys(("prompt", "prompt_file", *types, *config.__annotations__))
    config.__annotations__ = {name: {**types, **config.__annotations__}[name] for name in order}
    for name, each in REQUEST_FIELDS.items():
        setattr(config, name, each.config_default)
    return config


@dataclass
@_with_request_fields
class Config:
    """The root of the configuration: the fields of a request, where null takes the model's default, and these."""

    prompt_file: str | None = None  # prompts from a file, one a line, each of them a run of its own
    suite: Suite | None = None  # a suite of checks to run in place of a request
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: Any = None  # files that change the model's weights: see diffuse.config.lora
    embedding: Any = None  # files of textual inversion: see diffuse.config.embedding
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    scheduler: Any = MISSING  # keys are the chosen sampler's own, see conf/scheduler
    memory_profile: MemoryProfileConfig = field(default_factory=MemoryProfileConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    text_backend: TextBackendConfig = field(default_factory=lambda: TextBackendConfig(name="auto"))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


def check_parts(cfg: DictConfig, part: type = Config, prefix: str = "") -> None:
    """Checks what interpolations give that stand for parts with fields, for lists, and for one of several choices.

    OmegaConf checks it only when it is read, and then only texts, numbers and choices.

    Args:
        part: the dataclass that `cfg` is of.
        prefix: of its names, with a dot at the end.

    Raises:
        ConfigError: an interpolation gives something else, or leads nowhere.
    """
    for name, (kind, optional) in part_kinds(part).items():
        if name not in cfg or OmegaConf.is_missing(cfg, name):
            continue
        full = f"{prefix}{name}"
        if OmegaConf.is_interpolation(cfg, name):
            text = str(OmegaConf.to_container(cfg, resolve=False)[name])  # type: ignore[call-overload, index]
            try:
                value = cfg[name]
            except OmegaConfBaseException as error:
                raise ConfigError(f"{full}={text}: {explain_interpolation(str(error))}") from error
            if not (value is None and optional) and not _is_of(value, kind):
                raise ConfigError(f"{full}={text}: {_advice(full, kind)}")
        elif isinstance(kind, type) and is_dataclass(kind) and isinstance(value := cfg[name], DictConfig):
            check_parts(value, kind, f"{full}.")


@cache
def part_kinds(part: type) -> dict[str, tuple[Any, bool]]:
    """Returns the fields of a dataclass whose values are no texts or numbers: their kind, and whether null is one."""
    hints = get_type_hints(part)
    kinds: dict[str, tuple[Any, bool]] = {}
    for each in fields(part):
        hint = hints[each.name]
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for choice in choices:
            kind = get_origin(choice) or choice
            if is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, dict | list | Enum)):
                kinds[each.name] = kind, type(None) in choices
    return kinds


def _is_of(value: Any, kind: type) -> bool:
    if is_dataclass(kind):
        return isinstance(value, DictConfig) and OmegaConf.get_type(value) is kind
    if issubclass(kind, Enum):
        return isinstance(value, kind)
    return isinstance(value, ListConfig if issubclass(kind, list) else DictConfig)


def _advice(name: str, kind: type) -> str:
    if is_dataclass(kind):
        first = next(each.name for each in fields(kind))
        return f"it has fields of its own and is no text or number; set one of them, such as {name}.{first}"
    if issubclass(kind, list):
        return f"should be a list; write {name}='[VALUE, VALUE]'"
    return f"it has names and values; set one of them, as {name}.NAME=VALUE"
