"""The root of the configuration, of the request's fields and the groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from diffuse.schema import (
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
    TrackingConfig,
)

ConfigClass = TypeVar("ConfigClass", bound=type)


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
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    scheduler: Any = MISSING  # keys are the chosen sampler's own, see conf/scheduler
    memory_profile: MemoryProfileConfig = field(default_factory=MemoryProfileConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
