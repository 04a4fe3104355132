"""The Optuna sweeper of Hydra, which says at the end what it has found."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffuse.config import objective
from diffuse.errors import ConfigError
from diffuse.media.images import InputImageCache
from diffuse.sweep.launchers.require import require
from diffuse.terminal import say

_RESULTS = "optimization_results.yaml"


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`. The study is in memory: jobs that are done keep what they returned."""

    def __init__(self, sampler: Mapping[str, Any], **settings: Any) -> None:
        self.sampler = sampler
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        require("hydra_plugins.hydra_optuna_sweeper", extra="optuna", wanted="hydra/sweeper=optuna")
        if config.objective.metric is None:
            raise ConfigError("hydra/sweeper=optuna: has nothing to look for; add objective.metric=quality/psnr")

        objective.read(config.objective, InputImageCache())  # a mistake in there is told once, and not by every job

        import optuna
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper as Inner

        optuna.logging.set_verbosity(logging.WARNING)
        # What it would say of jobs that fail is told already.
        logging.getLogger(Inner.__module__.rpartition(".")[0]).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of a sampler's options
            sampler = instantiate(self.sampler)
        self.inner = Inner(
            sampler, storage=None, study_name=None, search_space=None, custom_search_space=None, **self.settings
        )
        self.inner.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.metric = str(config.objective.metric)
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> Any:
        """Hydra's. Leaves the best values in the sweep's folder, and says them."""
        try:
            self.inner.sweep(arguments)
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            return  # all jobs failed, and are told by whoever made them
        found = OmegaConf.load(self.folder / _RESULTS)
        settings = " ".join(f"{name}={_short(value)}" for name, value in found.best_params.items())
        say(f"best {self.metric}: {found.best_value:.4g} with {settings}")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
