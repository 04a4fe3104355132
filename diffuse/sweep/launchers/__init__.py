"""Sweeps on more than one process or machine: Hydra's launchers, and the Optuna sweeper.

`conf/hydra/launcher` and `conf/hydra/sweeper` hold their settings. Hydra takes plugins from a package of its own alone,
so they go by `hydra_plugins.diffuse.NAME` there.
"""

from __future__ import annotations

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from diffuse.sweep.launcher import SweepLauncher
from diffuse.sweep.launchers.foreign import KINDS, Foreign, task
from diffuse.sweep.launchers.joblib import JoblibLauncher
from diffuse.sweep.launchers.optuna import OptunaSweeper
from diffuse.sweep.launchers.ray import RayLauncher
from diffuse.sweep.launchers.submitit import LocalLauncher, SlurmLauncher

__all__ = ["register", "task"]

_PLUGINS = (JoblibLauncher, LocalLauncher, OptunaSweeper, RayLauncher, SlurmLauncher)


def register() -> None:
    """Makes Hydra know them, and stands before those that it knows already."""
    known = Plugins.instance().class_name_to_class
    known |= {f"hydra_plugins.diffuse.{plugin.__name__}": plugin for plugin in _PLUGINS}
    for name, plugin in known.items():
        if isinstance(plugin, type) and issubclass(plugin, Launcher) and not issubclass(plugin, SweepLauncher):
            KINDS[name], known[name] = plugin, Foreign
