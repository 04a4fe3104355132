"""Launchers that know nothing of `Jobs`: Hydra's own, and whatever else is installed. They are given the jobs that are
missing, each of them makes its job by `task`, and what that says of it is what the sweep goes by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from diffuse import sweep
from diffuse.errors import RunError
from diffuse.sweep import start
from diffuse.sweep.jobs import FAILED, LEFT, Job, Jobs
from diffuse.sweep.launcher import SweepLauncher, making, working
from diffuse.sweep.launchers.work import Done, Ended, ended, sendable

KINDS: dict[str, type[Launcher]] = {}  # by the name that the configuration has for each


class Foreign(SweepLauncher):
    """Stands before such a launcher."""

    calls_back = True

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's. The inner one composes for itself, with Hydra's own part."""
        self.inner = KINDS[config.hydra.launcher._target_](**self.settings)
        own = HydraContext(hydra_context.config_loader, hydra_context.callbacks)
        self.inner.setup(hydra_context=own, task_function=task_function, config=config)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Hydra's: what each job returned, in their order."""
        making().elsewhere = self._make
        return super().launch(job_overrides, initial_job_idx)

    def _make(self, jobs: Jobs, missing: Sequence[Job]) -> None:
        # Hydra's own makes one after the other in any case, and so what is done is known meanwhile.
        size = 1 if isinstance(self.inner, BasicLauncher) else len(missing)
        for place in range(0, len(missing), size):
            jobs.interruption.check()
            some = missing[place : place + size]
            if jobs.full:
                for job in some:
                    jobs.end(job, LEFT)
                continue
            returned = self.inner.launch([job.lines for job in some], some[0].number)
            for job, came in zip(some, returned, strict=True):
                _end(jobs, job, came._return_value)


def _end(jobs: Jobs, job: Job, came: Any) -> None:
    if not isinstance(came, Done):  # the launcher's own failure
        error = came if isinstance(came, Exception) else RunError(f"its process said {came!r}, and not what it made")
        came = Done([Ended(FAILED, error, [], {})], [])
    for warning in came.warnings:
        jobs.told.warnings.setdefault(warning)
    (one,) = came.jobs
    job.paths, job.metrics = one.paths, one.metrics
    jobs.end(job, one.status, one.error)


def task(cfg: DictConfig) -> Done:
    """One job, in whatever process: Hydra's task function. If it fails, that is what it returns."""
    here = working()
    try:
        hydra = HydraConfig.get()
        folder = Path(hydra.sweep.dir)
        of = sweep.read(folder)
        if of is None:
            raise RunError(f"{folder / sweep.FILE} cannot be read: every process needs the folder of the sweep")
        jobs = Jobs(of, cfg.tracking, lambda lines: cfg, None if here is None else here.interruption)
        away = start.followed(folder, start.current(folder), jobs.interruption) if here is None else nullcontext()
        try:
            with away:
                made = jobs.make([list(hydra.overrides.task)], hydra.job.num)
        finally:
            warnings = jobs.close()
    except KeyboardInterrupt:
        if here is not None:
            raise
        return Done([Ended(LEFT, None, [], {})], [])
    except Exception as error:
        return Done([Ended(FAILED, sendable(error), [], {})], [])
    return Done([ended(each) for each in made], [*jobs.told.warnings, *warnings])
