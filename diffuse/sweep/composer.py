"""Composes the configurations of a sweep's jobs: each choice of groups by Hydra once, and the values after that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, flag_override

from diffuse.config.bases import Bases
from diffuse.config.compose import resolve_hydra_values
from diffuse.config.groups import without_nodes_of_plugins

CACHE_SIZE = 1000  # configurations, of 70 kB each


class JobComposer:
    """Hydra's config loader, made fast for the jobs of a sweep.

    Jobs that choose the same options from the groups share what Hydra composes for these. Values in which they differ
    are set on a copy. Whatever is not a plain value goes to Hydra as a whole, and so does a value that cannot be set,
    whose error is then Hydra's.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._bases = Bases(self._is_choice)
        self._cache: OrderedDict[tuple[str, ...], DictConfig] = OrderedDict()
        self._groups: dict[str, list[str]] = {}  # by the folder in which they are

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """Returns the configuration of one job, without Hydra's own part; the same object for the same overrides."""
        key = tuple(sweep_overrides)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        cfg = self._bases.with_values(key, partial(self._compose, master_config, settle=False))
        self._cache[key] = self._compose(master_config, key) if cfg is None else cfg
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return self._cache[key]

    def _compose(self, master_config: DictConfig, overrides: Sequence[str], settle: bool = True) -> DictConfig:
        with without_nodes_of_plugins():  # a worker has them too, and a searchpath has it read everything again
            cfg: DictConfig = self._loader.load_sweep_config(master_config, list(overrides))
        if settle:
            resolve_hydra_values(cfg)
        with flag_override(cfg, ["struct", "readonly"], False):
            del cfg["hydra"]
        return cfg

    def _is_choice(self, override: Override) -> bool:
        """Returns whether an override chooses an option from a group, or sets a value of Hydra's own."""
        key: str = override.key_or_group
        parent, _, name = key.rpartition("/")
        if parent not in self._groups:
            self._groups[parent] = self._loader.list_groups(parent)
        return key.startswith("hydra") or name in self._groups[parent]
