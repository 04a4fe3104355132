"""Sweeps on workers. A job's `job.json` says which worker made it, and how long that took to load."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from command import Done, jobs_in, start, until

from diffuse.sweep.claim import CLAIM_FILE

CACTUS = ("hardware=cpu", "prompt=a cactus", "num_inference_steps=2")
QUICK = (*CACTUS, "tracking=none", "report.make=false", "output.dir=out")
SLOW = ("num_inference_steps=12", "hydra.launcher.jobs_per_task=1")  # jobs of a few tenths of a second, one at a time
ALONE = ("hardware.deterministic=strict", "num_inference_steps=80")  # jobs are made one at a time
LONG = (*ALONE, "seed=range(0,12)")  # for sweeps that do not come to their end
WHOLE = ("hardware.deterministic=strict", "num_inference_steps=24", "seed=range(0,8)")  # for those that do


def by_worker(jobs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    workers = defaultdict(list)
    for job in jobs:
        workers[job["worker"]].append(job)
    return workers


def loads(jobs: list[dict[str, Any]]) -> int:
    return sum(job["metrics"]["time/load_s"] > 0 for job in jobs)


def check(done: Done, folder: Path, seeds: int) -> None:
    """All jobs are there, once, and their paths in the order in which they were typed."""
    assert done.status == 0, done.err
    jobs = jobs_in(folder / "out")
    assert sorted(job["record"]["request"]["seed"] for job in jobs) == list(range(seeds))
    assert {job["status"] for job in jobs} == {"done"}
    assert [path.parent.name.split("-")[0] for path in done.paths] == [f"seed_{seed}" for seed in range(seeds)]
    assert all((folder / path).is_file() for path in done.paths)


def tracked(folder: Path, empty: Path) -> Path:
    """The tracking store of commands in a folder, which is new."""
    (folder / "outputs").mkdir()
    return Path(shutil.copy(empty, folder / "outputs" / "mlflow.db"))


def runs(store: Path) -> list[tuple[str, str]]:
    """The job and the status of each run."""
    with sqlite3.connect(store) as connection:
        query = (
            "select tags.value, runs.status from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'diffuse.job'"
        )
        return sorted(connection.execute(query))


def once(folder: Path) -> list[tuple[str, str]]:
    """What `runs` gives if each job is there once."""
    return sorted((job["key"], "FINISHED") for job in jobs_in(folder / "out"))


def on_a_terminal(*command: Any, cwd: Path) -> subprocess.Popen[Any]:
    """A command that `press` reaches as Ctrl-C on a terminal does: together with all that it starts."""
    return start(*command, cwd=cwd, env={"OMP_NUM_THREADS": "1"})


def press(process: subprocess.Popen[Any]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def stopping(process: subprocess.Popen[Any]) -> None:
    """Waits until the first Ctrl-C is handled: of two that come before, the system delivers one."""
    assert process.stderr is not None
    assert process.stderr.readline() == "\n" and "stopping after this step" in process.stderr.readline()


@contextmanager
def suspended(processes: list[psutil.Process]) -> Iterator[None]:
    """Has processes stand still in the block, however long it takes: what they have not made by then is not made."""
    with suppress(psutil.NoSuchProcess):
        for process in processes:
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def workers_of(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def claim(folder: Path) -> str:
    """Which command the workers of the sweep in `folder` work for; empty where it has told them to stop."""
    with suppress(FileNotFoundError):
        return (folder / CLAIM_FILE).read_text()
    return ""


def gone(processes: list[psutil.Process]) -> bool:
    """Waits for their end. Nobody may be there to bury those whose parent is gone."""

    def ended(process: psutil.Process) -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return bool(until(lambda: all(map(ended, processes))))


def kill_in_a_job(pid: int, folder: Path) -> None:
    """Kills a worker of a tracked sweep while it makes a job: not before one, and not after it is recorded."""
    worker = psutil.Process(pid)

    def in_a_job() -> bool:
        worker.suspend()
        spools = [Path(file.path).parent for file in worker.open_files() if Path(file.path).name == "writer.lock"]
        begun = [file.read_text() for spool in spools for file in spool.glob("*.jsonl")]
        made = [job["key"] for job in jobs_in(folder / "out")]
        if any(not any(key in run for key in made) for run in begun):
            return True
        worker.resume()
        return False

    until(in_a_job)
    worker.kill()


def processes_in(folder: Path) -> list[psutil.Process]:
    """Workers go where the command was started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder):
                found.append(process)
    return found
