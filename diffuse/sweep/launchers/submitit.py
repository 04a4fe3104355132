"""Workers that are Slurm's jobs, or processes that stand for them on this machine. Each does one task and ends, so that
a task has as many jobs as keep all workers busy once."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.sweep.launchers.require import require
from diffuse.sweep.launchers.spread import Pool, Spread, check_store, kill_tree
from diffuse.sweep.launchers.work import Done, Task, Told, work_and_leave

_LOOK_S = 0.5  # how often to see which have ended; submitit asks Slurm less often than that
_QUEUED = ("PENDING", "REQUEUED")  # states of Slurm's


class _SubmititLauncher(Spread):
    cluster: str

    def require(self) -> None:
        """See `Spread`."""
        require("submitit", extra="slurm", wanted=f"hydra/launcher=submitit_{self.cluster}")

    @property
    def threads(self) -> int:
        """See `Spread`."""
        return int(self.settings["cpus_per_task"] or 1)

    def open_pool(self, told: Told) -> Pool:
        """See `Spread`."""
        return Submitted(told, self.cluster, self.settings)

    def _jobs_per_task(self, jobs: int, workers: int) -> int:
        return -(-jobs // workers)


class SlurmLauncher(_SubmititLauncher):
    """`hydra/launcher=submitit_slurm`: one job array, of which at most `workers` tasks run at a time."""

    cluster = "slurm"


class LocalLauncher(_SubmititLauncher):
    """`hydra/launcher=submitit_local`: the same without Slurm, to try it out."""

    cluster = "local"


class _Share:
    """A worker's share of the jobs. A time limit may end it, and it is queued again."""

    def __call__(self, told: Told, task: Task) -> Done:
        return work_and_leave(told, task)

    def checkpoint(self, told: Told, task: Task) -> Any:
        """What is to be queued: the same, since what is there is not made again. submitit calls it, and exits then."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, told, replace(task, again=True))


class Submitted(Pool):
    """Tasks handed to submitit. `settings` are its parameters, those of Slurm alone under their own names."""

    def __init__(self, told: Told, cluster: str, settings: dict[str, Any]) -> None:
        import submitit

        if cluster == "slurm":
            check_store(told.config.tracking, "Slurm's workers are on other machines")
        parameters = {name: value for name, value in settings.items() if value is not None}
        self.told = told
        self.workers: int = parameters.pop("workers")
        self.queues = cluster == "slurm"  # takes more tasks than there are workers
        folder = Path(parameters.pop("submitit_folder"))
        begun = {"slurm_max_num_timeout": parameters.pop("max_num_timeout")} if "max_num_timeout" in parameters else {}
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **begun)
            if self.queues:
                parameters["array_parallelism"] = self.workers
            shared = self.executor._typed_parameters()
            self.executor.update_parameters(
                **{name if name in shared else f"{cluster}_{name}": value for name, value in parameters.items()}
            )
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=submitit_{cluster}: {error}") from error
        self.running: dict[Any, Task] = {}

    @property
    def size(self) -> int:
        """See `Pool`."""
        return self.workers

    @property
    def busy(self) -> bool:
        """See `Pool`."""
        return bool(self.running)

    def give(self, tasks: deque[Task]) -> None:
        """See `Pool`."""
        room = len(tasks) if self.queues else self.workers - len(self.running)
        given = [tasks.popleft() for _ in range(min(room, len(tasks)))]
        if given:
            with self.executor.batch():
                jobs = [self.executor.submit(_Share(), self.told, task) for task in given]
            self.running |= zip(jobs, given, strict=True)

    def wait(self) -> list[tuple[Task, Done | str]]:
        """See `Pool`."""
        ended: list[tuple[Task, Done | str]] = []
        for job in [job for job in self.running if job.done()]:
            task = self.running.pop(job)
            try:
                ended.append((task, job.result()))
            except Exception:  # submitit's, whatever became of the process
                ended.append((task, f"{job.state}; see {job.paths.stderr}"))
        if not ended:
            time.sleep(_LOOK_S)
        return ended

    def stop(self) -> None:
        """See `Pool`. What has begun has a log, if only from before it was queued again."""
        mode = "force"  # asks Slurm, once for all
        queued = []
        for job in self.running:
            state, mode = job.get_info(mode=mode).get("State", ""), "cache"
            if state in _QUEUED or not job.paths.stdout.exists():
                queued.append(job)
        self._cancel(queued)
        for job in queued:
            del self.running[job]

    def close(self) -> list[str]:
        """See `Pool`."""
        self._cancel([*self.running])
        return []

    def kill(self) -> None:
        """See `Pool`."""
        if self.queues:
            self._cancel([*self.running])

    def _cancel(self, jobs: Sequence[Any]) -> None:
        """Not by submitit, which has Slurm called once a job, and ends its own processes by a Ctrl-C."""
        if self.queues and jobs:
            subprocess.run(["scancel", *(job.job_id for job in jobs)], check=False)
        elif jobs:
            for job in jobs:
                kill_tree(int(job.job_id))
