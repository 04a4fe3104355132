"""The same sweep by submitit, with processes that stand for Slurm's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command import finished, jobs_in, start, until
from omegaconf import OmegaConf
from workers import (
    QUICK,
    WHOLE,
    by_worker,
    check,
    claim,
    gone,
    kill_in_a_job,
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

from diffuse.sweep.folder import Sweep
from diffuse.sweep.launchers.submitit import _RunTask
from diffuse.sweep.launchers.worker import SweepContext, Task

pytest.importorskip("submitit")


def test_a_task_whose_time_is_over_is_queued_again(tmp_path: Path) -> None:
    """Submitit asks for it some time before the end: the same task, of which jobs may be there."""
    context = SweepContext(Sweep("x", "x", tmp_path, [], []), "", None, OmegaConf.create(), str(tmp_path), 1)
    task = Task((0, 1), (["seed=1"], ["seed=2"]))
    from submitit.helpers import DelayedSubmission

    again = _RunTask().checkpoint(context, task)
    assert isinstance(again, DelayedSubmission) and isinstance(again.function, _RunTask)
    assert again.args == (context, replace(task, may_exist=True)) and not task.may_exist


def test_a_task_of_submitit_that_dies_goes_to_another_process(tmp_path: Path, empty: Path) -> None:
    store = tracked(tmp_path, empty)
    jobs = ("hardware.deterministic=strict", "num_inference_steps=16", "seed=range(0,3)", "tracking=mlflow")
    limited = ("hydra/launcher=submitit_local", "hydra.launcher.workers=1")
    process = start("-m", *QUICK, *jobs, *limited, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    kill_in_a_job(int(first["worker"].rpartition("/")[2]), tmp_path)
    done = finished(process)
    check(done, tmp_path, 3)
    assert done.err.count(" died (") == 1, done.err
    workers = by_worker(jobs_in(tmp_path / "out"))
    assert len(workers) > 1 and {loads(made) for made in workers.values()} == {1}
    assert runs(store) == once(tmp_path)


def test_ctrl_c_ends_tasks_of_submitit(tmp_path: Path) -> None:
    command = ("-m", *QUICK, *WHOLE, "hydra/launcher=submitit_local")
    process = on_a_terminal(*command, cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"))
    with suspended(workers_of(process)):
        press(process)
        until(lambda: not claim(tmp_path / "out"))
    done = finished(process)
    assert gone(processes_in(tmp_path))
    before = {job["key"] for job in jobs_in(tmp_path / "out")}
    assert done.status == 130 and f"{len(before)} made, 0 were there, 0 failed, " in done.err, done.err
    assert 0 < len(before) < 8 and "died" not in done.err
