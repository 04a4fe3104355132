"""The same sweep on a cluster of Ray's."""

from __future__ import annotations

import signal
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import finished, jobs_in, start, until
from omegaconf import OmegaConf
from workers import (
    QUICK,
    SLOW,
    by_worker,
    check,
    gone,
    loads,
    processes_in,
)

from diffuse.sweep.folder import Sweep
from diffuse.sweep.launchers import ray as launchers_ray
from diffuse.sweep.launchers.ray import capacity
from diffuse.sweep.launchers.worker import SweepContext, Task

ray = pytest.importorskip("ray")


@pytest.mark.parametrize(("there", "need", "workers"), [(1, 0.1, 10), (1, 0.3, 3), (2, 0.5, 4), (7, 2, 3), (0, 1, 0)])
def test_fractions_of_rays_cards(there: float, need: float, workers: int) -> None:
    assert capacity(there, need) == workers


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray on this machine as if it were several: a head that does no work."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # its own 15 leaves workers no time beside other work
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
        process = on_ray(cluster, "seed=range(0,10)", cwd=tmp_path)
        until(lambda: len(by_worker(jobs_in(tmp_path / "out"))) == 2 or process.poll() is not None)
        cluster.remove_node(other, allow_graceful=False)
        done = finished(process)
        check(done, tmp_path, 10)
        workers = by_worker(jobs_in(tmp_path / "out"))
        assert len(workers) == 2
        assert [loads(jobs) for jobs in workers.values()] == [1, 1]
        assert max(len(jobs) for jobs in workers.values()) > 5  # the one that was left did more
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
        until(lambda: len(jobs_in(tmp_path / "out")) >= 2 or process.poll() is not None)
        workers = [each for each in processes_in(tmp_path) if each.pid != process.pid]
        process.send_signal(signal.SIGINT)
        done = finished(process)
        pictures = len(jobs_in(tmp_path / "out"))
        assert done.status == 130 and f"{pictures} made, 0 were there, 0 failed, {16 - pictures} left" in done.err
        assert workers and gone(workers)
    finally:
        cluster.remove_node(node)


def test_a_worker_that_no_node_of_ray_has_room_for(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is waited for, since a node may come; and that is said, once."""
    monkeypatch.setattr(launchers_ray, "_START_S", 0.1)
    cfg = OmegaConf.create({"hardware": {"device": "cpu"}, "tracking": {"name": "none"}})
    context = SweepContext(Sweep("x", "x", tmp_path, [], []), "", None, cfg, str(tmp_path), 1)
    workers = launchers_ray.ActorPool(context, {"address": cluster.address}, {"num_cpus": 1, "num_gpus": 2}, None)
    try:
        workers.submit(deque([Task((0,), (["seed=1"],))]))
        assert [workers.wait() for _ in range(3)] == [[], [], []] and not workers.running
    finally:
        workers.cancel_queued()
        assert workers.close() == []
    said = "waiting for a node of Ray with room for a worker: num_cpus=1, num_gpus=2"
    assert capsys.readouterr().err.splitlines().count(said) == 1
