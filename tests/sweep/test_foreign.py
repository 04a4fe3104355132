"""Launchers that are none of diffuse's: Hydra's own, and one that somebody has installed. A sweep ends as with ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from command import Done, diffuse, finished, jobs_in, start, until
from damaged import damaged, mend
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher

from diffuse.config.groups import PACKAGE
from diffuse.schema import TrackingConfig
from diffuse.tracking.query import StoreReader

TINY = PACKAGE / "tiny" / "checkpoint"
QUICK = ("hardware=cpu", "hardware.threads=1", "output.dir=out", "report.sheets=false")


class Elsewhere(Launcher):
    """Makes all jobs in another process, by what Hydra gives a launcher for that."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.inner = BasicLauncher()

    def setup(self, **given: Any) -> None:
        self.inner.setup(**given)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from joblib.externals.loky import ProcessPoolExecutor

        with ProcessPoolExecutor(max_workers=self.workers) as processes:
            state = Singleton.get_state()
            return processes.submit(launched, self.inner, state, job_overrides, initial_job_idx).result()


def launched(inner: BasicLauncher, state: Any, *jobs: Any) -> Sequence[JobReturn]:
    setup_globals()
    Singleton.set_state(state)
    return inner.launch(*jobs)


BASIC = ("hydra/launcher=basic",)
ELSEWHERE = ("hydra.launcher._target_=hydra_plugins.tests.Elsewhere", "+hydra.launcher.workers=1")


@pytest.fixture(params=[BASIC, ELSEWHERE], ids=["basic", "elsewhere"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setitem(Plugins.instance().class_name_to_class, "hydra_plugins.tests.Elsewhere", Elsewhere)
    return tuple(request.param)


def swept(*overrides: Any, cwd: Path, status: int = 0) -> Done:
    done = diffuse("-m", *QUICK, *overrides, cwd=cwd)
    assert done.status == status, done.err
    return done


def by_seed(folder: Path) -> dict[int, dict[str, Any]]:
    return {job["record"]["request"]["seed"]: job for job in jobs_in(folder / "out")}


def test_a_sweep_ends_as_with_our_own(launcher: tuple[str, ...], empty: Path, tmp_path: Path) -> None:
    """Paths in the order typed, a report, a summary run, a last line; and one that is there is not given out again."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    store = "tracking.uri=sqlite:///mlflow.db"
    swept("tracking=none", "report.make=false", "seed=2", "num_inference_steps=1", cwd=tmp_path)
    (first,) = jobs_in(tmp_path / "out")
    done = swept(*launcher, store, "seed=3,2,1,3", "num_inference_steps=1", cwd=tmp_path)
    jobs = by_seed(tmp_path)
    assert [tmp_path / path for path in done.paths] == [
        next(tmp_path.glob(f"out/*/*_{seed}.png")) for seed in (3, 2, 1)
    ]
    line = "3 jobs: 2 made, 1 were there, 0 failed, 1 given twice, in "
    assert done.err.startswith(line) and done.err.endswith("; report out/report/report.html\n")
    assert jobs[2] == first and len(jobs) == 3
    here = f"/{os.getpid()}"
    assert all(jobs[seed]["worker"].endswith(here) == (launcher == BASIC) for seed in (1, 3))
    reader = StoreReader(TrackingConfig(name="mlflow", uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))
    summary = reader.run(json.loads((tmp_path / "out" / "sweep.json").read_text())["identity"][:12] + "-summary")
    assert (summary.metrics["jobs/made"], summary.metrics["jobs/there"], summary.status) == (2, 1, "FINISHED")
    files = reader.fetch(summary, "report", tmp_path / "fetched")
    assert [path.name for path in files] == ["report.html", "table.csv"]
    assert len(reader.sweep(summary.tags["diffuse.sweep"])) == 2


def test_jobs_that_fail_are_told_and_tried_again(launcher: tuple[str, ...], tmp_path: Path) -> None:
    """Also those that fail before they are given out, which then are not."""
    model = damaged(tmp_path / "model")
    command = (*launcher, "tracking=none", "seed=1", f"model.source=model,{TINY}", "num_inference_steps=1")
    done = swept(*command, "width=64,65", cwd=tmp_path, status=1)
    assert "4 jobs: 1 made, 0 were there, 3 failed, in " in done.err and len(done.paths) == 1
    said = [line for line in done.err.splitlines() if line.startswith("diffuse: ")]
    assert len(said) == 4 and said[-1] == "diffuse: 3 jobs of the sweep failed, as said above"
    assert said[0].startswith("diffuse: model.source=model width=64: the vae gave NaN") and "Traceback" not in done.err
    assert {job["status"] for job in jobs_in(tmp_path / "out")} == {"done", "failed"}
    mend(model)
    assert "1 made, 1 were there, 0 failed" in swept(*command, "width=64", cwd=tmp_path).err


class Counting(Callback):
    """One of `hydra.callbacks`."""

    ended: ClassVar[list[str]] = []

    def on_job_end(self, config: Any, job_return: JobReturn, **rest: Any) -> None:
        self.ended.append(f"{config.hydra.job.num}: {config.seed}")


def test_callbacks_are_told_of_each_job(tmp_path: Path) -> None:
    callback = f"+hydra.callbacks.counting._target_={__name__}.Counting"
    swept(*BASIC, callback, "tracking=none", "report.make=false", "seed=4,5", "num_inference_steps=1", cwd=tmp_path)
    assert Counting.ended == ["0: 4", "1: 5"]


class Failing(Launcher):
    """Its processes do not start."""

    def setup(self, **given: Any) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return [JobReturn(_return_value=OSError("no node is left"), status=JobStatus.FAILED) for _ in job_overrides]


def test_what_a_launcher_fails_with_is_told_of_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Plugins.instance().class_name_to_class, "hydra_plugins.tests.Failing", Failing)
    command = ("tracking=none", "hydra.launcher._target_=hydra_plugins.tests.Failing", "seed=1,2")
    done = swept(*command, cwd=tmp_path, status=1)
    assert "2 jobs: 0 made, 0 were there, 2 failed" in done.err and done.err.count("no node is left") == 2


def test_what_a_sweeper_gets_is_the_objective(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = swept(
        *BASIC, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=minimize",
        "objective.metric=time/denoise_s", "seed=0", "num_inference_steps=1", "guidance_scale=interval(1,12)",
        "tracking=none", "report.make=false", cwd=tmp_path,
    )  # fmt: skip
    assert "best time/denoise_s: " in done.err and "3 made" in done.err


def test_ctrl_c_stops_the_job_in_this_process(tmp_path: Path) -> None:
    """And leaves the others."""
    command = ("-m", *QUICK, *BASIC, "seed=range(0,3)", "num_inference_steps=100", "tracking=none")
    process = start(*command, cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"), process)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.status == 130 and "Traceback" not in done.err, done.err
    assert "3 jobs: 1 made, 0 were there, 0 failed, 2 left to do, in " in done.err
    assert len(done.paths) == 1 == len(jobs_in(tmp_path / "out"))
