"""Makes the launchers and the sweepers of this package known to Hydra.

Hydra instantiates only plugins whose name begins with `hydra_plugins.`, and names a plugin that `Plugins.register` gets
by its module. So ours are entered under `hydra_plugins.diffuse.NAME`, as `conf/hydra` has them, in the table that
`register` fills: see docs/private-interfaces.md.
"""

from __future__ import annotations

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from diffuse.sweep.launcher import SweepLauncher
from diffuse.sweep.launchers.foreign import ForeignLauncher
from diffuse.sweep.launchers.joblib import JoblibLauncher
from diffuse.sweep.launchers.ray import RayLauncher
from diffuse.sweep.launchers.submitit import LocalLauncher, SlurmLauncher
from diffuse.sweep.optuna import OptunaSweeper
from diffuse.sweep.sweeper import GridSweeper

_PLUGINS = (GridSweeper, SweepLauncher, JoblibLauncher, LocalLauncher, OptunaSweeper, RayLauncher, SlurmLauncher)


def register_plugins() -> None:
    """Registers ours, and puts `ForeignLauncher` in the place of all other launchers."""
    table = Plugins.instance().class_name_to_class
    table |= {f"hydra_plugins.diffuse.{plugin.__name__}": plugin for plugin in _PLUGINS}
    for name, plugin in table.items():
        if isinstance(plugin, type) and issubclass(plugin, Launcher) and not issubclass(plugin, SweepLauncher):
            ForeignLauncher.classes[name], table[name] = plugin, ForeignLauncher
