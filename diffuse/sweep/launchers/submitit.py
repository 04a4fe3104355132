"""Workers that are Slurm jobs, or processes that stand for them on this machine.

Each does one task and ends, so that by default there are as many tasks as workers.
"""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.sweep.launchers.pool import POLL_S, Pool, PoolLauncher, WorkerDied, check_store, kill_tree
from diffuse.sweep.launchers.worker import SweepContext, Task, TaskResult, leave_sweep, run_task

_QUEUED = ("PENDING", "REQUEUED")  # Slurm's states
# The parameters that submitit documents as the same for all clusters. Others have the cluster's name as a prefix.
_SHARED_PARAMETERS = (
    *("name", "timeout_min", "mem_gb", "nodes"),
    *("cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout"),
)


class _SubmititLauncher(PoolLauncher):
    package, extra = "submitit", "slurm"
    cluster: str

    @property
    def threads(self) -> int:
        """See `PoolLauncher`."""
        return int(self.settings["cpus_per_task"] or 1)

    def open_pool(self, context: SweepContext) -> Pool:
        """See `PoolLauncher`."""
        return SubmititPool(context, self.cluster, self.settings)

    def default_jobs_per_task(self, jobs: int, workers: int) -> int:
        """See `PoolLauncher`."""
        return -(-jobs // workers)


class SlurmLauncher(_SubmititLauncher):
    """`hydra/launcher=submitit_slurm`: one job array, of which at most `workers` tasks run at a time."""

    option, cluster = "submitit_slurm", "slurm"


class LocalLauncher(_SubmititLauncher):
    """`hydra/launcher=submitit_local`: the same without Slurm, to try it out."""

    option, cluster = "submitit_local", "local"


class _RunTask:
    """The function that submitit calls. A time limit may end it, and it is queued again."""

    def __call__(self, context: SweepContext, task: Task) -> TaskResult:
        result = run_task(context, task)
        return TaskResult(result.jobs, [*result.warnings, *leave_sweep(context)])

    def checkpoint(self, context: SweepContext, task: Task) -> Any:
        """Returns what submitit queues at the time limit: the same task, since existing jobs are not made again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, context, replace(task, may_exist=True))


class SubmititPool(Pool):
    """Tasks that submitit runs. `settings` are its parameters; those of Slurm alone have their own names."""

    def __init__(self, context: SweepContext, cluster: str, settings: dict[str, Any]) -> None:
        import submitit

        super().__init__()
        if cluster == "slurm":
            check_store(context.config.tracking, "Slurm's workers are on other machines")
        parameters = {name: value for name, value in settings.items() if value is not None}
        self.context = context
        self.workers: int = parameters.pop("workers")
        self.has_queue = cluster == "slurm"  # takes more tasks than there are workers
        options = {"folder": Path(parameters.pop("submitit_folder"))}
        if "max_num_timeout" in parameters:
            options["slurm_max_num_timeout"] = parameters.pop("max_num_timeout")
        if self.has_queue:
            parameters["array_parallelism"] = self.workers
        try:
            self.executor = submitit.AutoExecutor(cluster=cluster, **options)
            self.executor.update_parameters(
                **{name if name in _SHARED_PARAMETERS else f"{cluster}_{name}": parameters[name] for name in parameters}
            )
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=submitit_{cluster}: {error}") from error

    @property
    def size(self) -> int:
        """See `Pool`."""
        return self.workers

    def submit(self, tasks: deque[Task]) -> None:
        """See `Pool`. Slurm gets all tasks at once, and queues them."""
        room = len(tasks) if self.has_queue else self.workers - len(self.running)
        batch = [tasks.popleft() for _ in range(min(room, len(tasks)))]
        if batch:
            with self.executor.batch():
                jobs = [self.executor.submit(_RunTask(), self.context, task) for task in batch]
            self.running |= zip(jobs, batch, strict=True)

    def poll(self) -> Iterable[Any]:
        """See `Pool`."""
        done = [job for job in self.running if job.done()]  # submitit asks Slurm less often than this is called
        if not done:
            time.sleep(POLL_S)
        return done

    def result(self, handle: Any) -> TaskResult:
        """See `Pool`."""
        try:
            result: TaskResult = handle.result()
        except Exception as error:  # submitit's own: nothing else is raised by a task
            raise WorkerDied(f"{handle.state}; see {handle.paths.stderr}") from error
        return result

    def cancel_queued(self) -> None:
        """See `Pool`. A task that has started has a log, if only from before it was queued again."""
        mode = "force"  # asks Slurm, once for all jobs
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
        if self.has_queue:
            self._cancel([*self.running])

    def _cancel(self, jobs: Sequence[Any]) -> None:
        """Cancels without submitit, which calls Slurm once a job, and ends its own processes by a Ctrl-C."""
        if self.has_queue and jobs:
            subprocess.run(["scancel", *(job.job_id for job in jobs)], check=False)
        elif jobs:
            for job in jobs:
                kill_tree(int(job.job_id))
