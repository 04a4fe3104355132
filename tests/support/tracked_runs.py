"""Runs that are recorded in a tracking store, and what has to be found of them there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow
from command import SMOKE, Done, diffuse
from mlflow import MlflowClient
from mlflow.entities import Run

from diffuse import tracking
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking import process as worker_process
from diffuse.tracking.store import Store
from diffuse.tracking.sync import sync as deliver
from diffuse.tracking.tracker import JournaledRun, JournaledTracker

PROMPT = "a cactus, “pink” background: (x:1.2) = {100%} 🌵"


def settings(file: Path | str, **options: Any) -> TrackingConfig:
    uri = file if isinstance(file, str) else f"sqlite:///{file}"
    return TrackingConfig(name="mlflow", uri=uri, **options)


def client(store: Path | str) -> MlflowClient:
    return MlflowClient(tracking_uri=store if isinstance(store, str) else f"sqlite:///{store}")


def runs(store: Path | str, experiment: str = "diffuse") -> list[Run]:
    """The runs of an experiment, the oldest first; none where there is no such experiment."""
    found = client(store).get_experiment_by_name(experiment)
    return [] if found is None else list(reversed(client(store).search_runs([found.experiment_id])))


def artifacts(store: Path | str, run: Run, folder: Path) -> Path:
    """A folder with all of a run's artifacts, fetched by MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    uri = store if isinstance(store, str) else f"sqlite:///{store}"
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(folder), tracking_uri=uri))


def make(store: Path | str, folder: Path, *arguments: Any) -> Done:
    """A run of one step that succeeds and is tracked in `store`."""
    uri = store if isinstance(store, str) else f"sqlite:///{store}"
    done = diffuse(*SMOKE, f"tracking.uri={uri}", f"output.dir={folder / 'out'}", *arguments, cwd=folder)
    assert done.status == 0, done.err
    return done


def sync(cfg: TrackingConfig) -> list[str]:
    said: list[str] = []
    deliver(cfg, said.append)
    return said


def record_run(tracker: tracking.Tracker, picture: Path, **options: Any) -> tracking.TrackedRun:
    run = tracker.start("run", {"a": 1}, {}, {"note.txt": "note"}, **options)
    run.log_media(picture)
    run.log_steps([0.5, 0.25])
    run.log_metrics({"value": 1.0})
    return run


def check_whole(file: Path, run: Run) -> None:
    """A finished run has all that `record_run` logs, once."""
    client = MlflowClient(f"sqlite:///{file}")
    steps = client.get_metric_history(run.info.run_id, "time/step_s")
    assert [(row.step, row.value) for row in steps] == [(0, 0.5), (1, 0.25)]
    assert len(client.get_metric_history(run.info.run_id, "value")) == 1
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert sorted(path.name for path in folder.iterdir()) == ["images", "media", "note.txt"]
    assert [path.name for path in (folder / "media").iterdir()] == ["picture.png"]
    assert len(list((folder / "images").iterdir())) == 2  # whole and small


def spooled(cfg: TrackingConfig, picture: Path, count: int = 1) -> Path:
    """The spool of a process that was killed before its worker did anything."""
    spool = journal.Spool(Store.from_config(cfg))
    tracker = JournaledTracker.__new__(JournaledTracker)
    for number in range(count):
        run = JournaledRun(tracker, spool.entry(), f"spooled{number}-{spool.folder.name}")
        begin = {"id": run.id, "name": "run", "time": 1000, "again": False}
        run.write({"begin": begin, "params": {"a": 1}, "tags": {}, "texts": {"note.txt": "note"}})
        run.log_media(picture)
        run.log_steps([0.5, 0.25])
        run.log_metrics({"value": 1.0})
        run.write({"end": "FINISHED"})
    spool._lock.release()
    return spool.folder


def work(file: Path, log: Path, picture: Path, pause: float = 0.03) -> None:
    """Begins and ends runs until it is killed, and writes down what it did."""
    tracker = tracking.open_tracker(settings(file))
    with log.open("w") as done:
        print("worker", worker_process.worker(Store.from_config(settings(file))).pid, file=done, flush=True)
        while True:
            run = record_run(tracker, picture)
            print("begun", run.id, file=done, flush=True)
            time.sleep(pause)
            run.finish()
            print("ended", run.id, file=done, flush=True)
