"""The same sweep by submitit, with processes that stand for Slurm's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from command import finished, jobs_in, start, until
from workers import (
    QUICK,
    WHOLE,
    by_worker,
    check,
    claim,
    gone,
    loads,
    on_a_terminal,
    once,
    press,
    processes_in,
    runs,
    suspended,
    tracked,
    workers_of,
)

pytest.importorskip("submitit")


def test_a_worker_whose_time_is_over_is_queued_again(tmp_path: Path, empty: Path) -> None:
    """As Slurm says it: by a signal, some time before the end."""
    store = tracked(tmp_path, empty)
    limited = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9", "hydra.launcher.workers=1")
    process = start("-m", *QUICK, *limited, "tracking=mlflow", *WHOLE, cwd=tmp_path)
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    os.kill(int(first["worker"].rpartition("/")[2]), signal.SIGUSR2)
    done = finished(process)
    check(done, tmp_path, 8)
    assert "died" not in done.err
    assert len(by_worker(jobs_in(tmp_path / "out"))) == 2
    assert runs(store) == once(tmp_path)


def test_tasks_of_submitit_and_ctrl_c(tmp_path: Path) -> None:
    """After Ctrl-C the same command does the rest; a task that dies meanwhile goes to another process."""
    command = ("-m", *QUICK, *WHOLE, "hydra/launcher=submitit_local")
    process = on_a_terminal(*command, cwd=tmp_path)
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    with suspended(workers_of(process)):
        press(process)
        until(lambda: not claim(tmp_path / "out"))
    done = finished(process)
    assert gone(processes_in(tmp_path))
    before = {job["key"] for job in jobs_in(tmp_path / "out")}
    assert done.status == 130 and f"{len(before)} made, 0 were there, 0 failed, " in done.err, done.err
    assert 0 < len(before) < 8 and "died" not in done.err

    process = start(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    again = until(lambda: [job for job in jobs_in(tmp_path / "out") if job["key"] not in before])[0]
    assert again["worker"] != first["worker"]
    os.kill(int(again["worker"].rpartition("/")[2]), signal.SIGKILL)
    check(finished(process), tmp_path, 8)
    assert {job["key"] for job in jobs_in(tmp_path / "out")} >= before
    assert all(loads(jobs) >= 1 for jobs in by_worker(jobs_in(tmp_path / "out")).values())


def test_workers_of_a_start_that_was_killed_leave_the_sweep_to_the_next(tmp_path: Path) -> None:
    """As on other machines, nothing ends them but what they see in the folder."""
    command = ("-m", *QUICK, *WHOLE, "hydra/launcher=submitit_local")
    process = start(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    until(lambda: jobs_in(tmp_path / "out"))
    workers, before = workers_of(process), claim(tmp_path / "out")
    process.kill()
    process.wait()
    made = len(jobs_in(tmp_path / "out"))
    until(lambda: len(jobs_in(tmp_path / "out")) > made)  # they go on
    with suspended(workers):  # how long a start takes is not their matter
        process = start(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
        until(lambda: claim(tmp_path / "out") not in ("", before), process)
    assert gone(workers)
    check(finished(process), tmp_path, 8)
    pids = {int(job["worker"].rpartition("/")[2]) for job in jobs_in(tmp_path / "out")}
    assert pids & {worker.pid for worker in workers} and pids - {worker.pid for worker in workers}
