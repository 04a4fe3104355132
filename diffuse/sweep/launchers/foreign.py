"""Launchers that know nothing of this package: Hydra's own, and whatever else is installed.

They get the jobs that are missing, and run each by `run_job`, Hydra's task function, whose result ends the job here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from diffuse.config.groups import without_nodes_of_plugins
from diffuse.config.own import own_config_of, use_own_config
from diffuse.config.quoting import task_overrides
from diffuse.errors import RunError
from diffuse.sweep.claim import current_claim, watch_claim
from diffuse.sweep.folder import SWEEP_FILE, read_sweep
from diffuse.sweep.job import Job, JobStatus
from diffuse.sweep.launcher import SweepLauncher, current_runner
from diffuse.sweep.launchers.worker import JobResult, TaskResult, job_result, picklable_error
from diffuse.sweep.runner import JobRunner

_WARNINGS = "diffuse_warnings"  # the attribute of an error by which a failed job hands over its warnings


class JobLoader:
    """Hydra's config loader, for launchers that compose jobs in processes of their own: it finds our files there."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "loader" or name.startswith("__"):  # before it is unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Returns the configuration of one job, with Hydra's own part."""
        with without_nodes_of_plugins():
            cfg: DictConfig = self.loader.load_sweep_config(master_config, sweep_overrides)
        return cfg


class ForeignLauncher(SweepLauncher):
    """Stands in for a launcher, which it calls for the missing jobs alone."""

    classes: ClassVar[dict[str, type[Launcher]]] = {}  # by the name that a configuration has for each
    calls_job_callbacks = True

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Sets the launcher up for Hydra. The inner one composes jobs itself, with Hydra's own part."""
        target = config.hydra.launcher._target_
        self.is_basic = target.endswith(".BasicLauncher")
        self.inner = self.classes[target](**self.settings)
        inner_context = HydraContext(cast(Any, JobLoader(hydra_context.config_loader)), hydra_context.callbacks)
        self.inner.setup(hydra_context=inner_context, task_function=task_function, config=config)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def dispatch(self, runner: JobRunner, missing: Sequence[Job]) -> None:
        """See `SweepLauncher`."""
        # Hydra's own makes one job after the other in any case; given one at a time, each result is known at once.
        size = 1 if self.is_basic else len(missing)
        for start in range(0, len(missing), size):
            runner.interruption.check()
            jobs = missing[start : start + size]
            if runner.disk_error:
                for job in jobs:
                    runner.end_job(job, JobStatus.LEFT)
                continue
            returned = self.inner.launch([job.overrides for job in jobs], jobs[0].number)
            for job, job_return in zip(jobs, returned, strict=True):
                _end_job(runner, job, _task_result(job_return))


def _task_result(job_return: JobReturn) -> TaskResult:
    """Returns what `run_job` returned, or the launcher's own failure as the job's."""
    try:
        with redirect_stderr(io.StringIO()):  # where Hydra names the job, before it raises the error
            value = job_return.return_value
    except Exception as error:
        return TaskResult([JobResult(JobStatus.FAILED, error)], vars(error).pop(_WARNINGS, []))
    if isinstance(value, TaskResult):
        return value
    failure = value if isinstance(value, Exception) else RunError(f"its process returned {value!r}, and no result")
    return TaskResult([JobResult(JobStatus.FAILED, failure)], [])


def _end_job(runner: JobRunner, job: Job, result: TaskResult) -> None:
    for warning in result.warnings:
        runner.callbacks.warnings.setdefault(warning)
    (ended,) = result.jobs
    job.paths, job.metrics = ended.paths, ended.metrics
    runner.end_job(job, ended.status, ended.error)


def run_job(cfg: DictConfig) -> TaskResult:
    """Runs one job in whatever process: Hydra's task function.

    Raises:
        Exception: what the job failed with, as Hydra's callbacks expect; it carries the job's warnings.
    """
    result = _run_job(cfg)
    for job in result.jobs:
        if job.status is JobStatus.FAILED and job.error is not None:
            vars(job.error)[_WARNINGS] = result.warnings
            raise job.error
    return result


def _run_job(cfg: DictConfig) -> TaskResult:
    """Returns the result also where the job fails."""
    outer = current_runner()  # of this process, where the launcher starts no others
    try:
        hydra = HydraConfig.get()
        folder = Path(hydra.sweep.dir)
        sweep = read_sweep(folder)
        if sweep is None:
            raise RunError(f"{folder / SWEEP_FILE} cannot be read: every process needs the folder of the sweep")
        interruption = None if outer is None else outer.interruption
        runner = JobRunner(sweep, cfg.tracking, lambda overrides: cfg, interruption)
        watch = watch_claim(folder, current_claim(folder), runner.interruption) if outer is None else nullcontext()
        try:
            with watch, use_own_config(own_config_of(hydra)):
                jobs = runner.run_overrides([task_overrides(hydra)], hydra.job.num)
        finally:
            warnings = runner.close()
    except KeyboardInterrupt:
        if outer is not None:
            raise
        return TaskResult([JobResult(JobStatus.LEFT)], [])
    except Exception as error:
        return TaskResult([JobResult(JobStatus.FAILED, picklable_error(error))], [])
    return TaskResult(
        [job_result(job) for job in jobs], [*runner.callbacks.notes.values(), *runner.callbacks.warnings, *warnings]
    )
