"""The same sweep on processes of joblib's, whose workers keep their model and may die."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import diffuse, finished, jobs_in, start, until
from omegaconf import OmegaConf
from workers import (
    LONG,
    QUICK,
    SLOW,
    by_worker,
    check,
    gone,
    kill_in_a_job,
    loads,
    on_a_terminal,
    once,
    press,
    processes_in,
    runs,
    tracked,
)

from diffuse.device import gpus
from diffuse.sweep.folder import Sweep
from diffuse.sweep.launchers.joblib import ProcessPool
from diffuse.sweep.launchers.worker import SweepContext, Task, TaskResult

pytest.importorskip("joblib")


def test_a_worker_of_joblib_that_dies_loses_one_job(tmp_path: Path, empty: Path) -> None:
    store = tracked(tmp_path, empty)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "tracking=mlflow")
    process = start("-m", *QUICK, *SLOW, *joblib, "seed=range(0,6)", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    kill_in_a_job(int(first["worker"].rpartition("/")[2]), tmp_path)
    done = finished(process)
    check(done, tmp_path, 6)
    assert done.err.count(" died (") == 1, done.err
    workers = by_worker(jobs_in(tmp_path / "out"))
    assert len(workers) == 3  # the third in place of the first; the second went on
    assert [loads(jobs) for jobs in workers.values()] == [1, 1, 1]
    assert runs(store) == once(tmp_path)


def test_ctrl_c_stops_workers_after_their_step(tmp_path: Path, empty: Path) -> None:
    """They record what they have made, and what they have not."""
    store = tracked(tmp_path, empty)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.jobs_per_task=6", "tracking=mlflow")
    process = on_a_terminal("-m", *QUICK, *LONG, *joblib, cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"))
    press(process)
    done = finished(process)
    assert gone(processes_in(tmp_path))
    assert done.status == 130, done.err
    pictures = len(jobs_in(tmp_path / "out"))
    assert 0 < pictures < 12 and len(done.paths) <= pictures
    said = done.err.splitlines()
    assert said[1] == "stopping after this step; Ctrl-C again stops at once"
    assert f"12 jobs: {pictures} made, 0 were there, 0 failed, {12 - pictures} left to do, in " in said[2], done.err
    assert said[2].endswith("; the same command goes on from here") and said[3:] == ["diffuse: interrupted"]
    left = [run for run in runs(store) if run not in once(tmp_path)]
    assert len(runs(store)) == pictures + len(left) and {status for _, status in left} == {"KILLED"}


def test_workers_of_joblib_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    process = start("-m", *QUICK, *LONG, "hydra/launcher=joblib", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    until(lambda: jobs_in(tmp_path / "out"))
    workers = processes_in(tmp_path)
    assert len(workers) > 1
    process.kill()
    process.wait()
    assert gone(workers)


def test_cards_are_shared_out_and_wrong_requests_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [gpus.Gpu(index, f"GPU-{index}", "card", 8.0, 8.0, (9, 0), "1") for index in range(2)]
    monkeypatch.setattr(gpus, "visible_gpus", lambda: cards)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    quick = ("tracking=none", "report.make=false", "output.dir=out", "num_inference_steps=1")
    jobs = ("hydra/launcher=joblib", "hydra.launcher.jobs_per_task=1", "seed=1,2", "width=64,4096")
    done = diffuse("-m", *quick, *jobs, cwd=tmp_path)
    assert done.status == 2 and len(done.paths) == 2
    assert done.err.count("width=4096") >= 2 and "2 jobs of the sweep failed" in done.err
    assert "Traceback" not in done.err
    told = {job["worker"]: job["record"]["determinism"] for job in jobs_in(tmp_path / "out") if job["status"] == "done"}
    seen = {record["environment"]["CUDA_VISIBLE_DEVICES"] for record in told.values()}
    assert seen and seen <= {"GPU-0", "GPU-1"} and len(seen) == len(told)
    cores = len(os.sched_getaffinity(0))
    assert {record["threads"] for record in told.values()} == {max(1, cores // 2)}


def test_a_worker_of_joblib_stays(tmp_path: Path) -> None:
    """Loky's would end as soon as it has grown by 300 MB. One that dies between two tasks is replaced."""
    context = SweepContext(Sweep("x", "x", tmp_path, [], []), "", None, OmegaConf.create(), str(tmp_path), 1)
    workers = ProcessPool(context, [{}])

    def asked(function: Any) -> Any:
        return workers.executors[0].submit(function).result()

    def done() -> TaskResult:
        workers.submit(deque([Task((0,), (["seed=1"],))]))
        while not (ended := workers.wait()):
            pass
        assert isinstance(ended[0][1], TaskResult), ended
        return ended[0][1]

    try:
        assert [job.status for job in done().jobs] == ["failed"]  # there is nothing to compose with
        first = asked(os.getpid)
        asked(partial(exec, "import sys; sys.kept = b'1' * 400_000_000"))
        time.sleep(1.1)  # it looks once a second
        asked(os.getpid)
        assert asked(os.getpid) == first
        os.kill(first, signal.SIGKILL)
        until(lambda: workers.executors[0]._flags.broken)
        done()
        assert asked(os.getpid) != first
        os.kill(asked(os.getpid), signal.SIGKILL)
        until(lambda: workers.executors[0]._flags.broken)
    finally:
        assert workers.close() == []
