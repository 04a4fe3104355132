"""The same sweep on more than one process or machine: joblib, submitit and Ray, whose workers keep their model and may
die. A job's `job.json` says which worker made it, and how long that took to load."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import Done, diffuse, finished, jobs_in, start, until
from omegaconf import OmegaConf

from diffuse import sweep
from diffuse.config.compose import TINY
from diffuse.device import gpus
from diffuse.run import open as opening
from diffuse.sweep.launchers import ray as launchers_ray
from diffuse.sweep.launchers.joblib import JoblibLauncher, Processes
from diffuse.sweep.launchers.spread import Pool
from diffuse.sweep.launchers.work import Done as Came
from diffuse.sweep.launchers.work import Task, Told, work

ray = pytest.importorskip("ray")

CACTUS = ("hardware=cpu", "prompt=a cactus", "num_inference_steps=2")
QUICK = (*CACTUS, "tracking=none", "report.make=false", "output.dir=out")
SLOW = ("num_inference_steps=12", "hydra.launcher.jobs_per_task=1")  # jobs of a few tenths of a second, one at a time
ALONE = ("hardware.deterministic=strict", "num_inference_steps=80")  # jobs are made one at a time
LONG = (*ALONE, "seed=range(0,12)")


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


def test_a_worker_of_joblib_that_dies_loses_one_job(tmp_path: Path, empty: Path) -> None:
    store = tracked(tmp_path, empty)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "tracking=mlflow")
    process = start("-m", *QUICK, *SLOW, *joblib, "seed=range(0,10)", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    os.kill(int(first["worker"].rpartition("/")[2]), signal.SIGKILL)
    done = finished(process)
    check(done, tmp_path, 10)
    assert done.err.count(" died (") == 1, done.err
    workers = by_worker(jobs_in(tmp_path / "out"))
    assert len(workers) == 3  # the third in place of the first; the second went on
    assert [loads(jobs) for jobs in workers.values()] == [1, 1, 1]
    assert runs(store) == once(tmp_path)


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


def on_a_terminal(*command: Any, cwd: Path) -> subprocess.Popen[Any]:
    """A command that `press` reaches as Ctrl-C on a terminal does: together with all that it starts."""
    return start(*command, cwd=cwd, env={"OMP_NUM_THREADS": "1"}, start_new_session=True)


def press(process: subprocess.Popen[Any]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether they end in that time. Nobody may be there to bury those whose parent is gone."""
    left = psutil.wait_procs(processes, timeout=seconds)[1]
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in left)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Workers go where the command was started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder):
                found.append(process)
    return found


def test_ctrl_c_stops_workers_after_their_step(tmp_path: Path, empty: Path) -> None:
    """They record what they have made, and what they have not."""
    store = tracked(tmp_path, empty)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.jobs_per_task=6", "tracking=mlflow")
    process = on_a_terminal("-m", *QUICK, *LONG, *joblib, cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"))
    press(process)
    done = finished(process)
    assert gone(processes_in(tmp_path), 5)
    assert done.status == 130, done.err
    pictures = len(jobs_in(tmp_path / "out"))
    assert 0 < pictures < 12 and len(done.paths) <= pictures
    said = done.err.splitlines()
    assert said[1] == "stopping after this step; Ctrl-C again stops at once"
    assert f"12 jobs: {pictures} made, 0 were there, 0 failed, {12 - pictures} left to do, in " in said[2], done.err
    assert said[2].endswith("; the same command goes on from here") and said[3:] == ["diffuse: interrupted"]
    left = [run for run in runs(store) if run not in once(tmp_path)]
    assert len(runs(store)) == pictures + len(left) and {status for _, status in left} == {"KILLED"}


def test_tasks_of_submitit_and_ctrl_c(tmp_path: Path) -> None:
    """After Ctrl-C the same command does the rest; a task that dies meanwhile goes to another process."""
    command = ("-m", *QUICK, *LONG, "hydra/launcher=submitit_local")
    process = on_a_terminal(*command, cwd=tmp_path)
    first = until(lambda: jobs_in(tmp_path / "out"))[0]
    press(process)
    done = finished(process)
    assert gone(processes_in(tmp_path), 5)
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


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_the_second_ctrl_c_ends_the_workers_too(launcher: str, tmp_path: Path) -> None:
    steps = "num_inference_steps=1,2000"
    process = on_a_terminal("-m", *QUICK, steps, f"hydra/launcher={launcher}", "seed=1,2", cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"))
    workers = processes_in(tmp_path)
    assert len(workers) > 1
    press(process)
    assert process.stderr.readline() == "\n" and "stopping after this step" in process.stderr.readline()
    press(process)
    done = finished(process, 5)
    assert done.status == 130 and done.err == ""
    assert gone(workers, 5) and not processes_in(tmp_path)


def test_workers_of_joblib_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    process = start("-m", *QUICK, *LONG, "hydra/launcher=joblib", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    until(lambda: jobs_in(tmp_path / "out"))
    workers = processes_in(tmp_path)
    assert len(workers) > 1
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=5)[1]


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
    assert gone(workers, 8)
    assert len(jobs_in(tmp_path / "out")) < 10
    check(finished(process), tmp_path, 10)


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
    assert seen <= {"GPU-0", "GPU-1"} and len(seen) == len(told)
    cores = len(os.sched_getaffinity(0))
    assert {record["threads"] for record in told.values()} == {max(1, cores // 2)}


def test_a_worker_of_joblib_stays(tmp_path: Path) -> None:
    """Loky's would end as soon as it has grown by 300 MB. One that dies between two tasks is replaced."""
    told = Told(sweep.Sweep("x", "x", tmp_path, [], []), "", None, OmegaConf.create(), str(tmp_path), 1)
    workers = Processes(told, [{}])

    def asked(function: Any) -> Any:
        return workers.executors[0].submit(function).result()

    def done() -> Came:
        workers.give(deque([Task((0,), (["seed=1"],))]))
        while not (ended := workers.wait()):
            pass
        assert isinstance(ended[0][1], Came), ended
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


class DeadlyJob(Pool):
    """Makes tasks in this process, but for those with a job that would end any."""

    size = 1

    def __init__(self, told: Told, deadly: str) -> None:
        self.told = told
        self.deadly = deadly
        self.tasks: list[Task] = []
        self.all: list[Task] = []

    def give(self, tasks: deque[Task]) -> None:
        if tasks:
            self.tasks.append(tasks.popleft())

    def wait(self) -> list[tuple[Task, Came | str]]:
        task = self.tasks.pop()
        self.all.append(task)
        return [(task, "killed" if any(self.deadly in job for job in task.jobs) else work(self.told, task))]

    def close(self) -> list[str]:
        return []


def test_a_job_that_kills_its_workers_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[DeadlyJob] = []

    def opened(_: Any, told: Told) -> Pool:
        pools.append(DeadlyJob(told, "seed=1"))
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

    def opened(_: Any, told: Told) -> Pool:
        pools.append(DeadlyJob(told, "seed=1"))
        return pools[-1]

    monkeypatch.setattr(JoblibLauncher, "open_pool", opened)
    monkeypatch.setattr(opening, "forget", forgotten.append)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.jobs_per_task=2", "hydra.launcher.attempts=2")
    done = diffuse("-m", *QUICK, *joblib, "seed=range(0,3)", "model.source=one,two", cwd=tmp_path)
    assert done.status == 1 and len(done.paths) == 4
    models = [{line for line in job if "model.source" in line}.pop() for task in pools[0].all for job in task.jobs]
    assert models == sorted(models)
    assert {len({line for job in task.jobs for line in job if "model.source" in line}) for task in pools[0].all} == {1}
    assert len(forgotten) == 1


@pytest.mark.parametrize(("there", "need", "workers"), [(1, 0.1, 10), (1, 0.3, 3), (2, 0.5, 4), (7, 2, 3), (0, 1, 0)])
def test_fractions_of_rays_cards(there: float, need: float, workers: int) -> None:
    assert launchers_ray.times(there, need) == workers


@pytest.mark.parametrize(
    ("overrides", "package", "extra"),
    [
        (["hydra/launcher=ray"], "ray", "ray"),
        (["hydra/launcher=joblib"], "joblib", "joblib"),
        (["hydra/launcher=submitit_slurm"], "submitit", "slurm"),
        (["experiment=tune_guidance"], "hydra_plugins.hydra_optuna_sweeper", "optuna"),
    ],
)
def test_what_is_not_installed_is_named(
    overrides: list[str], package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = diffuse("-m", *overrides, "seed=1,2", "tracking=none", cwd=tmp_path)
    assert done.status == 2
    assert done.err.count("\n") == 1 and f"pip install 'diffuse[{extra}]'" in done.err
    assert not list(tmp_path.iterdir())


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray on this machine as if it were several: a head that does no work."""
    from ray.cluster_utils import Cluster

    several = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield several
    several.shutdown()


def on_ray(cluster: Any, *overrides: Any, cwd: Path) -> subprocess.Popen[Any]:
    joined = ("hydra/launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'")
    return start("-m", *QUICK, *SLOW, *joined, *overrides, cwd=cwd)


def test_a_node_of_ray_that_dies(tmp_path: Path, cluster: Any) -> None:
    """Two nodes with a worker each, of which one goes in the middle: all jobs are made, with one load a worker."""
    one, other = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    try:
        process = on_ray(cluster, "seed=range(0,14)", cwd=tmp_path)
        until(lambda: len(by_worker(jobs_in(tmp_path / "out"))) == 2 or process.poll())
        cluster.remove_node(other, allow_graceful=False)
        done = finished(process)
        check(done, tmp_path, 14)
        workers = by_worker(jobs_in(tmp_path / "out"))
        assert len(workers) == 2
        assert [loads(jobs) for jobs in workers.values()] == [1, 1]
        assert max(len(jobs) for jobs in workers.values()) > 7  # the one that was left did more
    finally:
        cluster.remove_node(one)


def test_cards_of_ray_are_shared_out(tmp_path: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=2)  # Ray believes it
    try:
        options = ("hardware=auto", "num_inference_steps=4", "hydra.launcher.ray.remote.num_gpus=1")
        done = finished(on_ray(cluster, *options, "seed=range(0,6)", cwd=tmp_path))
        check(done, tmp_path, 6)
        workers = by_worker(jobs_in(tmp_path / "out"))
        seen = [
            {job["record"]["determinism"]["environment"]["CUDA_VISIBLE_DEVICES"] for job in jobs}
            for jobs in workers.values()
        ]
        assert sorted(seen, key=str) == [{"0"}, {"1"}]
        assert [loads(jobs) for jobs in workers.values()] == [1, 1]
    finally:
        cluster.remove_node(node)


def test_ctrl_c_under_ray(tmp_path: Path, cluster: Any) -> None:
    """On a cluster that stays, whose processes are none of the command's own."""
    node = cluster.add_node(num_cpus=2)
    try:
        process = on_ray(cluster, "num_inference_steps=100", "seed=range(0,16)", cwd=tmp_path)
        until(lambda: len(jobs_in(tmp_path / "out")) >= 2 or process.poll())
        workers = [each for each in processes_in(tmp_path) if each.pid != process.pid]
        process.send_signal(signal.SIGINT)
        done = finished(process, 20)
        pictures = len(jobs_in(tmp_path / "out"))
        assert done.status == 130 and f"{pictures} made, 0 were there, 0 failed, {16 - pictures} left" in done.err
        assert workers and gone(workers, 5)

        process = on_ray(cluster, "num_inference_steps=900", "seed=range(0,16)", cwd=tmp_path)
        workers = until(lambda: [each for each in processes_in(tmp_path) if each.pid != process.pid])
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert finished(process, 5).status == 130
        assert gone(workers, 5)
    finally:
        cluster.remove_node(node)


def test_a_worker_that_no_node_of_ray_has_room_for(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is waited for, since a node may come; and that is said, once."""
    monkeypatch.setattr(launchers_ray, "_START_S", 0.1)
    cfg = OmegaConf.create({"hardware": {"device": "cpu"}, "tracking": {"name": "none"}})
    told = Told(sweep.Sweep("x", "x", tmp_path, [], []), "", None, cfg, str(tmp_path), 1)
    workers = launchers_ray.Actors(told, {"address": cluster.address}, {"num_cpus": 1, "num_gpus": 2}, None)
    try:
        workers.give(deque([Task((0,), (["seed=1"],))]))
        assert [workers.wait() for _ in range(3)] == [[], [], []] and not workers.busy
    finally:
        workers.stop()
        assert workers.close() == []
    said = "waiting for a node of Ray with room for a worker: num_cpus=1, num_gpus=2"
    assert capsys.readouterr().err.splitlines().count(said) == 1
