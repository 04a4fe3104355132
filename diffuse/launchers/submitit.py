"""Workers that are Slurm's jobs, or processes that stand for them on this machine. Each does its task and ends, so that
a task has as many jobs as keep few workers busy."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.launchers.require import require
from diffuse.launchers.spread import Pool, Spread
from diffuse.launchers.work import Done, Sweep, Task, work

_LOOK_S = 0.2  # how often to see which have ended; submitit asks Slurm less often than that


class _SubmititLauncher(Spread):
    cluster: str

    def setup(self, **told: Any) -> None:
        super().setup(**told)
        require("submitit", extra="slurm", wanted=f"hydra/launcher=submitit_{self.cluster}")

    @property
    def threads(self) -> int:
        return int(self.settings["cpus_per_task"] or 1)

    def open_pool(self, sweep: Sweep) -> Pool:
        return Submitted(sweep, self.cluster, self.settings)

    def _jobs_per_task(self, jobs: int, workers: int) -> int:
        return -(-jobs // workers)


class SlurmLauncher(_SubmititLauncher):
    """`hydra/launcher=submitit_slurm`: one job array, of at most `workers` tasks at a time."""

    cluster = "slurm"


class LocalLauncher(_SubmititLauncher):
    """`hydra/launcher=submitit_local`: the same without Slurm, to try it out."""

    cluster = "local"


class Submitted(Pool):
    """Tasks handed to submitit. `settings` are its parameters, those of Slurm alone under their own names."""

    def __init__(self, sweep: Sweep, cluster: str, settings: dict[str, Any]) -> None:
        import submitit

        parameters = {name: value for name, value in settings.items() if value is not None}
        self.sweep = sweep
        self.workers: int = parameters.pop("workers")
        folder = Path(parameters.pop("submitit_folder"))
        begun = {"slurm_max_num_timeout": parameters.pop("max_num_timeout")} if "max_num_timeout" in parameters else {}
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **begun)
            shared = self.executor._typed_parameters()
            if cluster == "slurm":
                parameters["array_parallelism"] = self.workers
            self.executor.update_parameters(
                **{name if name in shared else f"{cluster}_{name}": value for name, value in parameters.items()}
            )
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=submitit_{cluster}: {error}") from error
        self.running: dict[Any, Task] = {}

    @property
    def size(self) -> int:
        return self.workers

    def give(self, tasks: deque[Task]) -> None:
        if not tasks:
            return
        with self.executor.batch():
            given = [(self.executor.submit(work, self.sweep, task), task) for task in tasks]
        self.running |= given
        tasks.clear()

    def wait(self) -> list[tuple[Task, Done | str]]:
        ended: list[tuple[Task, Done | str]] = []
        while not ended:
            for job in [job for job in self.running if job.done()]:
                task = self.running.pop(job)
                try:
                    ended.append((task, job.result()))
                except Exception as error:  # submitit's, whatever became of the process
                    ended.append((task, f"{str(error).strip().splitlines()[0]}; see {job.paths.stderr}"))
            if not ended:
                time.sleep(_LOOK_S)
        return ended

    def close(self) -> None:
        for job in self.running:
            job.cancel()
