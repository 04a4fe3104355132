"""The pool that all launchers share: workers that die, jobs that kill them, Ctrl-C, and wrong settings."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from command import diffuse, finished, jobs_in, until
from workers import (
    QUICK,
    gone,
    on_a_terminal,
    press,
    processes_in,
    stopping,
)

from diffuse.config.groups import TINY
from diffuse.run import open as opening
from diffuse.sweep.launchers.joblib import JoblibLauncher
from diffuse.sweep.launchers.pool import Pool, WorkerDied
from diffuse.sweep.launchers.worker import SweepContext, Task, TaskResult, run_task


class DeadlyJob(Pool):
    """Makes tasks in this process, but for those with a job that would end any."""

    size = 1

    def __init__(self, context: SweepContext, deadly: str) -> None:
        super().__init__()
        self.context = context
        self.deadly = deadly
        self.all: list[Task] = []

    def submit(self, tasks: deque[Task]) -> None:
        if tasks:
            task = tasks.popleft()
            self.running[id(task)] = task
            self.all.append(task)

    def poll(self) -> list[int]:
        return list(self.running)

    def result(self, handle: Any) -> TaskResult:
        task = self.all[-1]
        if any(self.deadly in job for job in task.jobs):
            raise WorkerDied("killed")
        return run_task(self.context, task)

    def close(self) -> list[str]:
        return []


def test_a_job_that_kills_its_workers_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[DeadlyJob] = []

    def opened(_: Any, context: SweepContext) -> Pool:
        pools.append(DeadlyJob(context, "seed=1"))
        return pools[-1]

    monkeypatch.setattr(JoblibLauncher, "open_pool", opened)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.jobs_per_task=4", "hydra.launcher.attempts=2")
    done = diffuse("-m", *QUICK, *joblib, "seed=range(0,6)", cwd=tmp_path)
    assert done.status == 1 and len(done.paths) == 5
    assert "seed_1-" in done.err and "its worker died 2 times (killed)" in done.err
    assert [len(task.jobs) for task in pools[0].all].count(1) >= 2  # by itself, in the end
    assert len([task for task in pools[0].all if any("seed=1" in job for job in task.jobs)]) <= 4


def test_a_task_is_of_one_model_and_so_are_those_that_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker that died was at goes on before the next model; and a worker lets go of the one before."""
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(TINY)
    pools: list[DeadlyJob] = []
    forgotten: list[Any] = []

    def opened(_: Any, context: SweepContext) -> Pool:
        pools.append(DeadlyJob(context, "seed=1"))
        return pools[-1]

    monkeypatch.setattr(JoblibLauncher, "open_pool", opened)
    monkeypatch.setattr(opening, "close_pipeline", forgotten.append)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.jobs_per_task=2", "hydra.launcher.attempts=2")
    done = diffuse("-m", *QUICK, *joblib, "seed=range(0,3)", "model.source=one,two", cwd=tmp_path)
    assert done.status == 1 and len(done.paths) == 4
    models = [{line for line in job if "model.source" in line}.pop() for task in pools[0].all for job in task.jobs]
    assert models == sorted(models)
    assert {len({line for job in task.jobs for line in job if "model.source" in line}) for task in pools[0].all} == {1}
    assert len(forgotten) == 1


def test_the_second_ctrl_c_ends_the_workers_too(tmp_path: Path) -> None:
    steps = "num_inference_steps=1,2000"
    process = on_a_terminal("-m", *QUICK, steps, "hydra/launcher=joblib", "seed=1,2", cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"))
    workers = processes_in(tmp_path)
    assert len(workers) > 1
    press(process)
    stopping(process)
    press(process)
    done = finished(process)
    assert done.status == 130 and done.err == ""
    assert gone(workers) and not processes_in(tmp_path)
    assert {job["record"]["request"]["num_inference_steps"] for job in jobs_in(tmp_path / "out")} == {1}  # none went on


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["hydra/launcher=submitit_slurm"],
            "is a file, and Slurm's workers are on other machines; use tracking.uri=http://HOST:PORT",
        ),
        (["hydra/launcher=submitit_slurm", "tracking=none"], "hydra/launcher=submitit_slurm: "),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: should be a whole number"),
        (
            ["hydra/launcher=ray", "hydra.launcher.ray.init.address='127.0.0.1:1'"],
            "address=127.0.0.1:1: no Ray answers",
        ),
    ],
)
def test_a_launcher_that_cannot_be(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # Slurm may be there
    done = diffuse("-m", *overrides, "seed=1,2", "output.dir=out", cwd=tmp_path)
    assert done.status == 2
    assert done.err.count("\n") == 1 and said in done.err
    assert not (tmp_path / "out").exists()
