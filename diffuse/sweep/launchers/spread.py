"""A launcher that spreads the jobs of a sweep over workers; what the workers are is the matter of its pool."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Protocol

import psutil
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffuse.errors import ConfigError, RunError
from diffuse.schema import TrackingConfig
from diffuse.sweep import start
from diffuse.sweep.interrupt import deaf_children
from diffuse.sweep.jobs import FAILED, Job, Jobs
from diffuse.sweep.launcher import SweepLauncher, making
from diffuse.sweep.launchers.work import Done, Task, Told
from diffuse.tracking.store import Store

TASKS_A_WORKER = 4  # at least, so that a slow worker does not keep the others waiting at the end
MOST_JOBS = 16  # of a task, where the settings say nothing


class Pool(Protocol):
    """Workers. Each does one task at a time."""

    @property
    def size(self) -> int:
        """How many workers there are, or will be."""

    @property
    def busy(self) -> bool:
        """Whether a worker has a task."""

    def give(self, tasks: deque[Task]) -> None:
        """Takes from the left as many tasks as there are workers without one."""

    def wait(self) -> list[tuple[Task, Done | str]]:
        """Tasks that have ended: what came of each, or how its worker died. May return without one after a while."""

    def stop(self) -> None:
        """Takes back the tasks that no worker has begun, if there can be any; no more will be given."""
        return

    def close(self) -> list[str]:
        """Ends the workers; those that have no task, in order. Returns warnings."""

    def kill(self) -> None:
        """Ends at once, before this process does, those workers that are no processes below it and go on without it."""
        return


class Spread(SweepLauncher):
    """Gives the jobs that are missing to the workers of a pool, which stay until the sweep ends.

    `attempts` is how often a job is begun whose worker dies; `jobs_per_task` how many jobs a worker is given together.
    """

    def __init__(self, attempts: int, jobs_per_task: int | None, **settings: Any) -> None:
        self.attempts = attempts
        self.jobs_per_task = jobs_per_task
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.pool: Pool | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's. Raises ConfigError where a setting is wrong, or what the workers need is not installed."""
        numbers = {"attempts": self.attempts, "jobs_per_task": self.jobs_per_task, **self.settings}
        for name in ("attempts", "jobs_per_task", "n_jobs", "workers"):
            value = numbers.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"hydra.launcher.{name}={value}: should be a whole number of 1 or more")
        self.require()
        self.loader = hydra_context.config_loader
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @abstractmethod
    def require(self) -> None:
        """Raises ConfigError where what the workers need is not installed."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many cores a worker has."""

    @abstractmethod
    def open_pool(self, told: Told) -> Pool:
        """The workers, who are all to be told of the sweep."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Hydra's: what each job returned, in their order."""
        making().elsewhere = self._make
        return super().launch(job_overrides, initial_job_idx)

    def _make(self, jobs: Jobs, missing: Sequence[Job]) -> None:
        if self.pool is None:
            current = start.current(jobs.sweep.folder)
            told = Told(jobs.sweep, current, self.loader, self.config, os.path.abspath(os.curdir), self.threads)
            self.pool = self.open_pool(told)
            jobs.on_close.append(self.pool.close)
            jobs.interruption.at_once += [_kill_children, self.pool.kill]
        size = self.jobs_per_task or self._jobs_per_task(len(missing), self.pool.size)
        _Spreading(jobs, self.pool, self.attempts).run(missing, size)

    def _jobs_per_task(self, jobs: int, workers: int) -> int:
        return max(1, min(MOST_JOBS, jobs // (workers * TASKS_A_WORKER)))


class _Spreading:
    """Jobs on their way through the workers."""

    def __init__(self, jobs: Jobs, pool: Pool, attempts: int) -> None:
        self.jobs = jobs
        self.pool = pool
        self.attempts = attempts
        self.left: dict[int, Job] = {}  # by number
        self.died: Counter[int] = Counter()  # how many workers have, of a job
        self.waiting: deque[Task] = deque()

    def run(self, missing: Sequence[Job], size: int) -> None:
        """Returns when all of `missing` have ended; `size` of them go to a worker together, if they are of one model.

        Raises KeyboardInterrupt after Ctrl-C, when the workers have stopped, which look for it by themselves.
        """
        self.left = {job.number: job for job in missing}
        for _, group in groupby(missing, key=lambda job: job.levels[0]):
            alike = list(group)
            self.waiting.extend(_task(alike[start : start + size]) for start in range(0, len(alike), size))
        while self.left and not self.jobs.interruption.asked:
            with deaf_children():
                self.pool.give(self.waiting)
            self._hear()
        if self.left:
            self.pool.stop()
            while self.pool.busy:
                self._hear()
        self.jobs.interruption.check()

    def _hear(self) -> None:
        for task, came in self.pool.wait():
            if isinstance(came, Done):
                self._done(task, came)
            else:
                self._lost(task, came)

    def _done(self, task: Task, done: Done) -> None:
        for warning in done.warnings:
            self.jobs.told.warnings.setdefault(warning)
        for number, ended in zip(task.numbers, done.jobs, strict=True):
            job = self.left.pop(number)
            job.paths, job.metrics = ended.paths, ended.metrics
            self.jobs.end(job, ended.status, ended.error)

    def _lost(self, task: Task, why: str) -> None:
        """Gives what is missing of the task to others, next, while they have its model: its first, which may be to
        blame, by itself."""
        lost = [self.left.pop(number) for number in task.numbers]
        for job in lost:
            self.jobs.look(job)
        missing = [job for job in lost if not job.status]
        self.left |= {job.number: job for job in missing}
        if not missing or self.jobs.interruption.asked:
            return
        first, *others = missing
        again = [_task(others, again=True)] if others else []
        self.died[first.number] += 1
        self.jobs.told.warnings.setdefault(f"the worker of {first.folder.name} died ({why})")
        if self.died[first.number] < self.attempts:
            again.append(_task([first], again=True))
        else:
            del self.left[first.number]
            self.jobs.end(
                first, FAILED, RunError(f"{first.folder.name}: its worker died {self.attempts} times ({why})")
            )
        self.waiting.extendleft(reversed(again))


def check_store(cfg: TrackingConfig, where: str) -> None:
    """Raises ConfigError for a tracking store that workers on other machines, which are `where`, cannot share."""
    if cfg.name == "mlflow" and (file := Store.from_config(cfg).file) is not None:
        raise ConfigError(
            f"tracking.uri: {file} is a file, and {where}; use tracking.uri=http://HOST:PORT, or tracking=none"
        )


def kill_tree(pid: int) -> None:
    """Ends a process and all below it, whatever they are doing."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                each.kill()


def _kill_children() -> None:
    for child in psutil.Process().children():
        kill_tree(child.pid)


def _task(jobs: Sequence[Job], again: bool = False) -> Task:
    return Task(tuple(job.number for job in jobs), tuple(job.lines for job in jobs), again)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
