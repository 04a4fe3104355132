"""Hydra's Optuna sweeper, which reports the best settings at the end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffuse.config import objective
from diffuse.errors import ConfigError, raised_in
from diffuse.media.images import InputImageCache
from diffuse.sweep.launcher import OPTUNA, require_package
from diffuse.sweep.sweeper import axis_values
from diffuse.terminal import say

_DIRECTIONS = ("maximize", "minimize")
_RESULTS = "optimization_results.yaml"


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`. The study is in memory: existing jobs keep the values that they returned."""

    def __init__(self, sampler: Mapping[str, Any], **settings: Any) -> None:
        self.sampler = sampler
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Sets the sweeper up for Hydra. Raises ConfigError for a missing package or a wrong objective."""
        require_package(OPTUNA, extra="optuna", user="hydra/sweeper=optuna")
        if config.objective.metric is None:
            raise ConfigError("hydra/sweeper=optuna: has nothing to look for; add objective.metric=quality/psnr")

        _check_settings(self.settings)
        objective.read_reference(
            config.objective, InputImageCache()
        )  # so that a mistake is reported once, and not by every job

        import optuna
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper as Inner

        optuna.logging.set_verbosity(logging.WARNING)
        # Jobs that fail are reported already.
        logging.getLogger(Inner.__module__.rpartition(".")[0]).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # some options of samplers
            try:
                sampler = instantiate(self.sampler)
            except HydraException as error:
                raise ConfigError(f"hydra.sweeper.sampler: {error.__cause__ or error}") from error
        self.inner = Inner(
            sampler, storage=None, study_name=None, search_space=None, custom_search_space=None, **self.settings
        )
        self.inner.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.metric = str(config.objective.metric)
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the sweep for Hydra. Prints the best settings, which are also in the sweep's folder."""
        try:
            self.inner.sweep([with_quotes(line) for line in arguments])
        except (TypeError, ValueError) as error:
            if not raised_in(error, "optuna"):
                raise
            if "No trials are completed" not in str(error):  # a range or an option of the sampler is wrong
                raise ConfigError(f"hydra/sweeper=optuna: {error}") from error
            return  # all jobs failed, which is reported where they ran
        results = OmegaConf.load(self.folder / _RESULTS)
        settings = " ".join(f"{name}={_short(value)}" for name, value in results.best_params.items())
        say(f"best {self.metric}: {results.best_value:.4g} with {settings}")


def with_quotes(line: str) -> str:
    """Returns an override whose texts Optuna hands on as they were quoted: it takes those of `choice(...)` without."""
    override = OverridesParser.create().parse_override(line)
    if not isinstance(choice := override.value(), ChoiceSweep) or choice.shuffle or len(choice.list) < 2:
        return line
    return f"{override.get_key_element()}={','.join(axis_values(override))}"


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that is not of its type or range, of which Optuna has no check."""
    for name in ("n_trials", "n_jobs"):
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"hydra.sweeper.{name}={value}: should be a whole number of 1 or more")
    if settings["direction"] not in _DIRECTIONS:
        raise ConfigError(f"hydra.sweeper.direction={settings['direction']}: should be {' or '.join(_DIRECTIONS)}")
    rate = settings["max_failure_rate"]
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise ConfigError(f"hydra.sweeper.max_failure_rate={rate}: should be a number from 0 to 1")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
