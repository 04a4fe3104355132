"""A launcher that spreads a sweep over workers; what the workers are is the matter of its pool."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffuse.errors import RunError
from diffuse.launchers.work import Done, Sweep, Task
from diffuse.terminal import say

TASKS_A_WORKER = 4  # at least, so that a slow worker does not keep the others waiting at the end
MOST_JOBS = 16  # of a task, where the settings say nothing


class Pool(ABC):
    """Workers. Each does one task at a time."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many workers there are, or will be."""

    @abstractmethod
    def give(self, tasks: deque[Task]) -> None:
        """Takes from the left as many tasks as there are workers without one."""

    @abstractmethod
    def wait(self) -> list[tuple[Task, Done | str]]:
        """Tasks that have ended: what came of each, or how its worker died. May return without one after a while."""

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, whatever they do."""


class Spread(Launcher):
    """Gives the jobs to the workers of a pool, which stay until the sweep ends.

    `attempts` is how often a job is begun whose worker dies; `jobs_per_task` how many jobs a worker is given together.
    """

    def __init__(self, attempts: int = 3, jobs_per_task: int | None = None, **settings: Any) -> None:
        self.attempts = attempts
        self.jobs_per_task = jobs_per_task
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.pool: Pool | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many cores a worker has."""

    @abstractmethod
    def open_pool(self, sweep: Sweep) -> Pool:
        """The workers, who are all to be told of the sweep."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Hydra's: what each job returned, in their order."""
        if self.pool is None:
            sweep = Sweep(
                self.hydra_context,
                self.config,
                self.task_function,
                Singleton.get_state(),
                folder=os.path.abspath(os.curdir),
                threads=self.threads,
            )
            self.pool = self.open_pool(sweep)
            open_pools.append(self.pool)
        jobs = [tuple(job) for job in job_overrides]
        size = self.jobs_per_task or self._jobs_per_task(len(jobs), self.pool.size)
        tasks = [
            Task(initial_job_idx + start, tuple(jobs[start : start + size])) for start in range(0, len(jobs), size)
        ]
        returned = self._run(self.pool, tasks)
        return [returned[initial_job_idx + index] for index in range(len(jobs))]

    def _jobs_per_task(self, jobs: int, workers: int) -> int:
        return max(1, min(MOST_JOBS, jobs // (workers * TASKS_A_WORKER)))

    def _run(self, pool: Pool, tasks: Sequence[Task]) -> dict[int, JobReturn]:
        waiting = deque(tasks)
        left = len(waiting)
        died: dict[int, int] = {}  # job number -> how many workers have died of it, or beside it
        returned: dict[int, JobReturn] = {}
        while left:
            pool.give(waiting)
            for task, came in pool.wait():
                left -= 1
                numbers = range(task.number, task.number + len(task.jobs))
                if isinstance(came, Done):
                    _print(came)
                    returned |= zip(numbers, came.returns, strict=True)
                    continue
                # One after the other from now on, so that the one which is to blame costs no other.
                for number, job in zip(numbers, task.jobs, strict=True):
                    died[number] = died.get(number, 0) + 1
                    if died[number] < self.attempts:
                        waiting.append(Task(number, (job,)))
                        left += 1
                    else:
                        error = RunError(f"{' '.join(job)}: its worker died {self.attempts} times ({came})")
                        returned[number] = JobReturn(overrides=job, status=JobStatus.FAILED, _return_value=error)
                jobs = f"job {task.number}" if len(task.jobs) == 1 else f"jobs {numbers[0]} to {numbers[-1]}"
                say(f"warning: the worker of {jobs} died ({came})")
        return returned


open_pools: list[Pool] = []


def close_pools() -> None:
    """Ends every worker that a sweep has left."""
    while open_pools:
        open_pools.pop().close()


def _print(done: Done) -> None:
    for text, stream in ((done.err, sys.stderr), (done.out, sys.stdout)):
        stream.write(text)
        stream.flush()


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
