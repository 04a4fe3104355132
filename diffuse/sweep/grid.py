"""A sweep by the sweeper and the launcher of this package, which need nothing of Hydra but the jobs' configurations.

Hydra composes what the jobs share twice more before it hands it to its plugins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override

from diffuse.config.bases import uses_hydra_values
from diffuse.config.groups import compose_unchecked
from diffuse.config.hydra_settings import has_own_hydra, is_hydras
from diffuse.sweep.composer import CACHE_SIZE
from diffuse.sweep.runner import JobRunner
from diffuse.sweep.sweeper import GridSweeper, save_config

_PLUGINS = {"sweeper": "hydra_plugins.diffuse.GridSweeper", "launcher": "hydra_plugins.diffuse.SweepLauncher"}
# Overrides of Hydra's own that mean the same here; every other one is left to Hydra.
_SETTINGS = ("hydra.mode=", "hydra.sweeper.", "hydra/sweeper=", "hydra/launcher=")


def needs_plugins(base: DictConfig, overrides: Sequence[str]) -> bool:
    """Returns whether a sweep needs Hydra to run it: other plugins, callbacks, settings or values of Hydra's.

    Args:
        base: what the jobs share, with Hydra's settings under `hydra`.
        overrides: in Hydra's grammar.
    """
    if any(base.hydra[name]._target_ != target for name, target in _PLUGINS.items()) or base.hydra.callbacks:
        return True
    if has_own_hydra() or uses_hydra_values(overrides):
        return True
    return any(is_hydras(each) and not each.startswith(_SETTINGS) for each in overrides)


def run_grid(runner: JobRunner, base: DictConfig, overrides: Sequence[str], folder: Path) -> None:
    """Runs the jobs of a sweep of which `needs_plugins` is false.

    All jobs of a batch are composed before the first of them is made.

    Args:
        runner: of the sweep.
        base: what the jobs share, with Hydra's settings under `hydra`.
        overrides: in Hydra's grammar.
        folder: for the file in which the sweep's configuration is left.

    Raises:
        HydraException, OmegaConfBaseException: a job cannot be composed.
        ConfigError: a setting of the sweeper is wrong.
    """
    settings = cast(dict[str, Any], OmegaConf.to_container(base.hydra.sweeper, resolve=True))
    sweeper = GridSweeper(**{name: value for name, value in settings.items() if name != "_target_"})
    arguments = [each for each in overrides if not is_hydras(each)]
    batches = sweeper.batches(arguments, OverridesParser.create())
    with flag_override(base, ["struct", "readonly"], False):
        base.hydra.mode, base.hydra.sweep.dir, base.hydra.overrides.task = "MULTIRUN", str(folder), arguments
    save_config(base, folder)
    compose = lru_cache(CACHE_SIZE)(compose_unchecked)
    runner.compose = lambda lines: compose(tuple(lines))
    for first, batch in batches:
        for lines in batch:
            runner.compose(lines)
        runner.run_overrides(batch, first)
