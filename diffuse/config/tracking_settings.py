"""Settings of `tracking.*`: those of the configuration; where it says nothing, MLflow's own environment variables; and
then defaults. MLflow is not imported for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse.config.run_tags import check_run_tags
from diffuse.errors import ConfigError

DEFAULT_URI = "sqlite:///outputs/mlflow.db"
DEFAULT_EXPERIMENT = "diffuse"
# The variables in which MLflow's users say it, by the field of `tracking` that they stand for.
VARIABLES = {
    "uri": ("MLFLOW_TRACKING_URI",),
    "experiment": ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
    "run_name": ("MLFLOW_RUN_NAME",),
}
TRACKING_VARIABLES = tuple(variable for variables in VARIABLES.values() for variable in variables)
_EXPERIMENT_CHARACTERS = 500  # MLflow's own limit


@dataclass(frozen=True)
class TrackingSettings:
    """Values of `tracking.*` that hold."""

    uri: str
    experiment: str | None  # by name; None where it is given by its id alone
    experiment_id: str | None = None
    run_name: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    """By field that is given, where: `tracking.FIELD`, or the variable."""

    @property
    def is_experiment_given(self) -> bool:
        """True if the experiment is not merely the default."""
        return "experiment" in self.origins

    def origin(self, name: str) -> str:
        """Returns how messages call a field: as the user gave it."""
        return self.origins.get(name, f"tracking.{name}")


def tracking_settings(cfg: Any) -> TrackingSettings:
    """Returns what holds of a `TrackingConfig`, in whatever form it is.

    Raises:
        ConfigError: MLflow would refuse the name of the experiment.
    """
    given = tracking_environment()
    origins: dict[str, str] = {}
    values: dict[str, str] = {}
    for name, variables in VARIABLES.items():
        value = cfg.get(name) if isinstance(cfg, Mapping) else getattr(cfg, name)
        if value is not None:
            values[name], origins[name] = str(value), f"tracking.{name}"
        elif found := [variable for variable in variables if variable in given]:
            values[name], origins[name] = given[found[0]], found[0]
    number = given.get("MLFLOW_EXPERIMENT_ID") if origins.get("experiment") in VARIABLES["experiment"] else None
    is_known_by_id = origins.get("experiment") == "MLFLOW_EXPERIMENT_ID"
    experiment = None if is_known_by_id else values.get("experiment", DEFAULT_EXPERIMENT)
    uri = values.get("uri", DEFAULT_URI)
    settings = TrackingSettings(uri, experiment, number, values.get("run_name"), origins)
    _check_experiment(settings)
    return settings


def check_tracking(cfg: Any, *, in_sweep: bool = False) -> None:
    """Checks the names and tags of a `TrackingConfig`, whatever they come from.

    Raises:
        ConfigError: MLflow would refuse or cut one, or a tag is one that diffuse sets itself.
    """
    if cfg.name == "none":
        check_run_tags(cfg.tags, cfg.run_name, in_sweep=in_sweep)
    else:
        settings = tracking_settings(cfg)
        check_run_tags(cfg.tags, settings.run_name, settings.origin("run_name"), in_sweep=in_sweep)


def tracking_record(cfg: Any) -> tuple[dict[str, str | None], dict[str, str]]:
    """Returns for the record the values of `tracking.*` that hold, and which of configuration and environment said so.

    The second is of those fields alone of which the environment says something.
    """
    settings, given = tracking_settings(cfg), tracking_environment()
    values = {"uri": settings.uri, "experiment": settings.experiment, "run_name": settings.run_name}
    origins = {}
    for name, variables in VARIABLES.items():
        if any(variable in given for variable in variables):
            origin = settings.origins[name]
            if origin not in variables:
                origins[name] = f"configuration: {origin}"
            elif settings.experiment_id is not None and name == "experiment":
                origins[name] = f"environment: MLFLOW_EXPERIMENT_ID={settings.experiment_id}"
            else:
                origins[name] = f"environment: {origin}"
    return values, origins


def tracking_environment() -> dict[str, str]:
    """Returns MLflow's variables that are set, which say where runs are recorded. An empty one is as none."""
    values = {variable: os.environ.get(variable, "").strip() for variable in TRACKING_VARIABLES}
    return {variable: value for variable, value in values.items() if value}


def _check_experiment(settings: TrackingSettings) -> None:
    name, origin = settings.experiment, settings.origin("experiment")
    if name is None:
        return
    if not name.strip():
        raise ConfigError(f"{origin} is empty: give a name, or leave it out")
    if len(name) > _EXPERIMENT_CHARACTERS:
        raise ConfigError(f"{origin}: has {len(name)} characters; MLflow takes {_EXPERIMENT_CHARACTERS} in a name")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{origin}: holds bytes that are not UTF-8 text; give it in UTF-8") from None
