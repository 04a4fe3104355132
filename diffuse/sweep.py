"""The folder of a sweep: Hydra makes it before it looks at the first job; it goes again if nothing comes of them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

OVERRIDE = f"+hydra.callbacks.sweep_folder._target_={__name__}.WatchFolder"  # has Hydra tell of the folder

_CONFIGURATION = "multirun.yaml"  # which Hydra writes into it
_watched: list[WatchFolder] = []


class WatchFolder(Callback):
    """Notes, when a sweep begins, what is there already."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.was_there = (self.folder / _CONFIGURATION).exists()
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]  # innermost first
        _watched[:] = [self]


def remove_empty_job(folder: Path) -> None:
    """Removes the folder of a job that left nothing in it."""
    with suppress(OSError):
        folder.rmdir()


def remove_empty_sweep() -> None:
    """Removes what Hydra made for the last sweep, if there is nothing else in its folder."""
    for sweep in _watched:
        with suppress(OSError):
            if not sweep.was_there and [path.name for path in sweep.folder.iterdir()] == [_CONFIGURATION]:
                (sweep.folder / _CONFIGURATION).unlink()
            for path in sweep.made:
                path.rmdir()  # refuses one that is not empty
    _watched.clear()
