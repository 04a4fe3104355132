"""The pool that all launchers with workers share: a queue of tasks, lost workers, Ctrl-C, and the results of jobs.

A launcher adds how its workers are started and watched, in a subclass of `Pool`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import psutil
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffuse.config.tracking_settings import tracking_environment, tracking_settings
from diffuse.errors import ConfigError, RunError
from diffuse.schema import TrackingConfig
from diffuse.sweep.claim import current_claim
from diffuse.sweep.interrupt import ctrl_c_blocked
from diffuse.sweep.job import Job, JobStatus
from diffuse.sweep.launcher import SweepLauncher, require_package
from diffuse.sweep.launchers.worker import SweepContext, Task, TaskResult
from diffuse.sweep.runner import JobRunner
from diffuse.tracking.store import Store

POLL_S = 0.5  # the longest wait before the pool looks for Ctrl-C, and for workers that have come or gone
CLOSE_S = 60  # for a worker to record its last jobs
_TASKS_PER_WORKER = 4  # at least, so that a slow worker does not keep the others waiting at the end
_MAX_JOBS_PER_TASK = 16  # unless the settings say otherwise


class WorkerDied(Exception):
    """The reason why a worker ended before its task did."""


class Pool(ABC):
    """Workers, each of which does one task at a time."""

    def __init__(self) -> None:
        self.running: dict[Any, Task] = {}  # by the handle that the workers' library gives for each

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of workers that there are, or will be."""

    @abstractmethod
    def submit(self, tasks: deque[Task]) -> None:
        """Moves tasks from the left of `tasks` to `running`, one for each worker that has none."""

    @abstractmethod
    def poll(self) -> Iterable[Any]:
        """Returns the handles of running tasks that have ended. Waits for the first, for `POLL_S` at most."""

    @abstractmethod
    def result(self, handle: Any) -> TaskResult:
        """Returns the result of a task that has ended. Raises WorkerDied where there is none."""

    def cancel_queued(self) -> None:
        """Takes back the running tasks that no worker has started yet, where there can be any."""
        return

    @abstractmethod
    def close(self) -> list[str]:
        """Ends the workers: those without a task in order, the others at once. Returns warnings."""

    def kill(self) -> None:
        """Ends at once the workers that are not child processes of this one. The others are killed anyway."""
        return

    def wait(self) -> list[tuple[Task, TaskResult | WorkerDied]]:
        """Returns tasks that have ended. Returns after `POLL_S` at the latest, maybe without one."""
        ended: list[tuple[Task, TaskResult | WorkerDied]] = []
        for handle in self.poll():
            task = self.running.pop(handle)
            try:
                ended.append((task, self.result(handle)))
            except WorkerDied as error:
                ended.append((task, error))
        return ended


class PoolLauncher(SweepLauncher):
    """A launcher that gives the missing jobs to the workers of a pool, which stay until the sweep ends.

    Args:
        attempts: how often a job is started whose worker dies.
        jobs_per_task: how many jobs a worker gets together.
        settings: the launcher's own, as in its YAML file.
    """

    option: str  # of hydra/launcher
    package: str  # that the workers need
    extra: str  # that brings it

    def __init__(self, attempts: int, jobs_per_task: int | None, **settings: Any) -> None:
        self.attempts = attempts
        self.jobs_per_task = jobs_per_task
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.pool: Pool | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Sets the launcher up for Hydra. Raises ConfigError for a wrong setting or a package that is missing."""
        numbers = {"attempts": self.attempts, "jobs_per_task": self.jobs_per_task, **self.settings}
        for name in ("attempts", "jobs_per_task", "n_jobs", "workers"):
            value = numbers.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"hydra.launcher.{name}={value}: should be a whole number of 1 or more")
        require_package(self.package, extra=self.extra, user=f"hydra/launcher={self.option}")
        self.loader = hydra_context.config_loader
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @property
    @abstractmethod
    def threads(self) -> int:
        """The number of cores of a worker."""

    @abstractmethod
    def open_pool(self, context: SweepContext) -> Pool:
        """Returns the pool of workers for a sweep."""

    def default_jobs_per_task(self, jobs: int, workers: int) -> int:
        """Returns how many of `jobs` a worker gets together where the settings do not say."""
        return max(1, min(_MAX_JOBS_PER_TASK, jobs // (workers * _TASKS_PER_WORKER)))

    def dispatch(self, runner: JobRunner, missing: Sequence[Job]) -> None:
        """See `SweepLauncher`."""
        if self.pool is None:
            claim = current_claim(runner.sweep.folder)
            directory = os.path.abspath(os.curdir)
            shared = (self.loader, self.config, directory, self.threads, tracking_environment())
            context = SweepContext(runner.sweep, claim, *shared)
            self.pool = self.open_pool(context)
            runner.on_close.append(self.pool.close)
            runner.interruption.on_exit += [_kill_children, self.pool.kill]
        size = self.jobs_per_task or self.default_jobs_per_task(len(missing), self.pool.size)
        _TaskQueue(runner, self.pool, self.attempts).run(missing, size)


class _TaskQueue:
    """The missing jobs on their way through the workers of a pool."""

    def __init__(self, runner: JobRunner, pool: Pool, attempts: int) -> None:
        self.runner = runner
        self.pool = pool
        self.attempts = attempts
        self.unfinished: dict[int, Job] = {}  # by number
        self.deaths: Counter[int] = Counter()  # of workers, by the number of the job
        self.tasks: deque[Task] = deque()

    def run(self, missing: Sequence[Job], size: int) -> None:
        """Runs all of `missing`, in tasks of up to `size` jobs that use the same models.

        Raises KeyboardInterrupt after Ctrl-C, when the workers have stopped: they watch the claim themselves.
        """
        self.unfinished = {job.number: job for job in missing}
        for _, group in groupby(missing, key=lambda job: job.levels[0]):
            jobs = list(group)
            self.tasks.extend(_task(jobs[start : start + size]) for start in range(0, len(jobs), size))
        while self.unfinished and not self.runner.interruption.requested:
            with ctrl_c_blocked():
                self.pool.submit(self.tasks)
            self._wait()
        if self.unfinished:
            self.pool.cancel_queued()
            while self.pool.running:
                self._wait()
        self.runner.interruption.check()

    def _wait(self) -> None:
        for task, result in self.pool.wait():
            if isinstance(result, TaskResult):
                self._finish(task, result)
            else:
                self._retry(task, result)

    def _finish(self, task: Task, result: TaskResult) -> None:
        for warning in result.warnings:
            self.runner.callbacks.warnings.setdefault(warning)
        for number, ended in zip(task.numbers, result.jobs, strict=True):
            job = self.unfinished.pop(number)
            job.paths, job.metrics = ended.paths, ended.metrics
            self.runner.end_job(job, ended.status, ended.error)

    def _retry(self, task: Task, reason: WorkerDied) -> None:
        """Queues again what is missing of a lost task, first, while other workers have its model.

        The first missing job, which may be to blame, gets a task of its own.
        """
        lost = [self.unfinished.pop(number) for number in task.numbers]
        for job in lost:
            self.runner.look_up(job)
        missing = [job for job in lost if not job.status]
        self.unfinished |= {job.number: job for job in missing}
        if not missing or self.runner.interruption.requested:
            return
        first, *others = missing
        tasks = [_task(others, may_exist=True)] if others else []
        name = first.folder.name
        self.deaths[first.number] += 1
        self.runner.callbacks.warnings.setdefault(f"the worker of {name} died ({reason})")
        if self.deaths[first.number] < self.attempts:
            tasks.append(_task([first], may_exist=True))
        else:
            del self.unfinished[first.number]
            error = RunError(f"{name}: its worker died {self.attempts} times ({reason})")
            self.runner.end_job(first, JobStatus.FAILED, error)
        self.tasks.extendleft(reversed(tasks))


def check_store(cfg: TrackingConfig, reason: str) -> None:
    """Raises ConfigError for a tracking store that is a file, which workers on other machines cannot share.

    Args:
        reason: where the workers are, for the message.
    """
    if cfg.name == "mlflow" and (file := Store.from_config(cfg).file) is not None:
        origin = tracking_settings(cfg).origin("uri")
        raise ConfigError(
            f"{origin}: {file} is a file, and {reason}; use tracking.uri=http://HOST:PORT, or tracking=none"
        )


def kill_tree(pid: int) -> None:
    """Kills a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                process.kill()


def _kill_children() -> None:
    for child in psutil.Process().children():
        kill_tree(child.pid)


def _task(jobs: Sequence[Job], may_exist: bool = False) -> Task:
    return Task(tuple(job.number for job in jobs), tuple(job.overrides for job in jobs), may_exist)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
