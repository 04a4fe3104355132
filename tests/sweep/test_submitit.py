"""The same sweep by submitit, with processes that stand for Slurm's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from command import finished, jobs_in, start, until
from workers import (
    ALONE,
    LONG,
    QUICK,
    by_worker,
    check,
    gone,
    loads,
    on_a_terminal,
    once,
    press,
    processes_in,
    runs,
    tracked,
)

pytest.importorskip("submitit")


def test_a_worker_whose_time_is_over_is_queued_again(tmp_path: Path, empty: Path) -> None:
    """As Slurm says it: by a signal, some time before the end."""
    store = tracked(tmp_path, empty)
    limited = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9", "hydra.launcher.workers=1")
    process = start("-m", *QUICK, *limited, "tracking=mlflow", *LONG, cwd=tmp_path)
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    os.kill(int(first["worker"].rpartition("/")[2]), signal.SIGUSR2)
    done = finished(process)
    check(done, tmp_path, 12)
    assert "died" not in done.err
    assert len(by_worker(jobs_in(tmp_path / "out"))) == 2
    assert runs(store) == once(tmp_path)


def test_tasks_of_submitit_and_ctrl_c(tmp_path: Path) -> None:
    """After Ctrl-C the same command does the rest; a task that dies meanwhile goes to another process."""
    command = ("-m", *QUICK, *LONG, "hydra/launcher=submitit_local")
    process = on_a_terminal(*command, cwd=tmp_path)
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    press(process)
    done = finished(process)
    assert gone(processes_in(tmp_path))
    before = {job["key"] for job in jobs_in(tmp_path / "out")}
    assert done.status == 130 and f"{len(before)} made, 0 were there, 0 failed, " in done.err, done.err
    assert 0 < len(before) < 12 and "died" not in done.err

    process = start(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    again = until(lambda: [job for job in jobs_in(tmp_path / "out") if job["key"] not in before])[0]
    assert again["worker"] != first["worker"]
    os.kill(int(again["worker"].rpartition("/")[2]), signal.SIGKILL)
    check(finished(process), tmp_path, 12)
    assert {job["key"] for job in jobs_in(tmp_path / "out")} >= before
    assert all(loads(jobs) >= 1 for jobs in by_worker(jobs_in(tmp_path / "out")).values())


def test_workers_of_a_start_that_was_killed_leave_the_sweep_to_the_next(tmp_path: Path) -> None:
    """As on other machines, nothing ends them but what they see in the folder."""
    command = ("-m", *QUICK, *ALONE, "seed=range(0,10)", "hydra/launcher=submitit_local")
    process = start(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    until(lambda: jobs_in(tmp_path / "out"))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    before = len(jobs_in(tmp_path / "out"))
    until(lambda: len(jobs_in(tmp_path / "out")) > before)  # they go on
    process = start(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    until((tmp_path / "out" / "sweep.json").is_file)
    assert gone(workers)
    assert len(jobs_in(tmp_path / "out")) < 10
    check(finished(process), tmp_path, 10)
