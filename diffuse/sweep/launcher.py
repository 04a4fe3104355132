"""Hydra's launcher for the jobs of a sweep in one process: every sweeper can use it, and what it is given is made by
`Jobs`. Others, in `launchers`, have jobs made elsewhere."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, flag_override

from diffuse.config import objective
from diffuse.config.compose import HYDRA_INTERPOLATION, resolve_hydra_values
from diffuse.errors import ConfigError
from diffuse.sweep.jobs import Job, Jobs

_KEPT = 1000  # configurations, of 70 kB each

_current: list[Jobs] = []  # those that make what is launched


@contextmanager
def registered(jobs: Jobs) -> Iterator[None]:
    """In the block, Hydra knows the launcher, and what it launches is made by `jobs`."""
    # Hydra takes plugins from below this package only, which need not exist.
    Plugins.instance().class_name_to_class["hydra_plugins.diffuse.SweepLauncher"] = SweepLauncher
    _current.append(jobs)
    try:
        yield
    finally:
        _current.pop()


def making() -> Jobs:
    """What makes the jobs that are launched now."""
    return _current[-1]


def working() -> Jobs | None:
    """The same, for a job that may be made in another process, which has none."""
    return _current[-1] if _current else None


class SweepLauncher(Launcher):
    """See `conf/hydra/launcher/diffuse.yaml`."""

    calls_back = False  # whether `hydra.callbacks` are told of single jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        for callback in () if self.calls_back else hydra_context.callbacks.callbacks:
            _check_callback(callback)
        self.composer = Composer(hydra_context.config_loader)
        # This is the sweeper's too, which composes every job to check it.
        hydra_context.config_loader = cast(Any, self.composer)
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Makes the jobs. What a sweeper gets of each is the objective, or the `Job` itself where none is set."""
        jobs = making()
        jobs.compose = lambda lines: self.composer.load_sweep_config(self.config, lines)
        return [self._returned(each) for each in jobs.make(job_overrides, initial_job_idx)]

    def _returned(self, each: Job) -> JobReturn:
        if self.config.objective.metric is None:  # nothing is raised: the others go on, and all are told at the end
            return JobReturn(overrides=each.lines, status=JobStatus.COMPLETED, _return_value=each)
        value = objective.objective_value(self.config.objective, each.metrics) if each.metrics else None
        return JobReturn(overrides=each.lines, status=JobStatus.COMPLETED, _return_value=value)


def _check_callback(callback: Any) -> None:
    """Raises ConfigError for one of `hydra.callbacks` that waits for the single jobs, which are made together."""
    for name in ("on_job_start", "on_job_end"):
        if getattr(type(callback), name, None) not in (None, getattr(Callback, name)):
            raise ConfigError(
                f"hydra.callbacks: {type(callback).__name__}.{name} is never called, as a sweep makes jobs together; "
                "use on_multirun_start and on_multirun_end, or hydra/launcher=basic, which makes one after the other"
            )


class Composer:
    """Hydra's composer, for the many jobs of a sweep. What they choose from the groups is composed once for all that
    choose the same; the values in which they differ are set afterwards, as Hydra does it too."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._bases: dict[tuple[str, ...], tuple[bytes, bool]] = {}
        self._kept: OrderedDict[tuple[str, ...], DictConfig] = OrderedDict()
        self._parse = lru_cache(10 * _KEPT)(self._parsed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job, without Hydra's own part; the same object where it is asked for again."""
        key = tuple(sweep_overrides)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        parsed = [self._parse(line) for line in key]
        chosen = tuple(line for line, (_, is_choice) in zip(key, parsed, strict=True) if is_choice)
        base, asks_hydra = self._base(master_config, chosen)
        cfg: DictConfig
        if asks_hydra or any(HYDRA_INTERPOLATION in line.replace("\\", "") for line in key):
            cfg = self._composed(master_config, key)  # what Hydra says depends on all of the job's overrides
        else:
            cfg = pickle.loads(base)
            ConfigLoaderImpl._apply_overrides_to_config([value for value, is_choice in parsed if not is_choice], cfg)
        self._kept[key] = cfg
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return cfg

    def _base(self, master_config: DictConfig, chosen: tuple[str, ...]) -> tuple[bytes, bool]:
        """What the choices give, pickled, which is copied five times as fast as by `deepcopy`; and whether a value
        in it may be Hydra's to give."""
        if chosen not in self._bases:
            base = pickle.dumps(self._composed(master_config, chosen, settle=False))
            self._bases[chosen] = base, HYDRA_INTERPOLATION.encode() in base
        return self._bases[chosen]

    def _composed(self, master_config: DictConfig, lines: Sequence[str], settle: bool = True) -> DictConfig:
        cfg: DictConfig = self._loader.load_sweep_config(master_config, list(lines))
        if settle:
            resolve_hydra_values(cfg)
        with flag_override(cfg, ["struct", "readonly"], False):
            del cfg["hydra"]
        return cfg

    def _parsed(self, line: str) -> tuple[Override, bool]:
        """An override, and whether it takes part in composing: it chooses from a group, or is Hydra's own."""
        override = OverridesParser.create(config_loader=self._loader).parse_override(line)
        key = override.key_or_group
        return override, key.startswith("hydra") or self._loader.repository.group_exists(key)
