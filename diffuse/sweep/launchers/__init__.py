"""Sweeps on more than one process or machine: Hydra's launchers, and the Optuna sweeper.

`conf/hydra/launcher` and `conf/hydra/sweeper` hold their settings. Hydra takes plugins from a package of its own alone,
so they go by `hydra_plugins.diffuse.NAME` there.
"""

from __future__ import annotations

from hydra.core.plugins import Plugins

from diffuse.sweep.launchers.joblib import JoblibLauncher
from diffuse.sweep.launchers.optuna import OptunaSweeper
from diffuse.sweep.launchers.ray import RayLauncher
from diffuse.sweep.launchers.submitit import LocalLauncher, SlurmLauncher

_PLUGINS = (JoblibLauncher, LocalLauncher, OptunaSweeper, RayLauncher, SlurmLauncher)


def register() -> None:
    """Makes Hydra know them."""
    for plugin in _PLUGINS:
        Plugins.instance().class_name_to_class[f"hydra_plugins.diffuse.{plugin.__name__}"] = plugin
