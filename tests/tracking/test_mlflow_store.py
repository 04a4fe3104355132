"""Creating an SQLite store, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from command import until
from tracked_runs import check_whole, client, record_run, runs, settings, sync

from diffuse import tracking
from diffuse.tracking import mlflow_store
from diffuse.tracking import process as worker_process
from diffuse.tracking.store import Store


def test_a_worker_killed_while_it_makes_the_store_leaves_no_half_of_it(picture: Path, tmp_path: Path) -> None:
    cfg = settings(tmp_path / "mlflow.db")
    tracker = tracking.open_tracker(cfg)
    record_run(tracker, picture).finish()
    until(lambda: any(path.stat().st_size for path in tmp_path.glob(".mlflow.db-*.tmp")))
    os.kill(worker_process.worker(Store.from_config(cfg)).pid or 0, signal.SIGKILL)
    assert "1 run waits in" in tracker.close()[0]
    assert not (tmp_path / "mlflow.db").exists()
    assert sync(cfg) == [f"1 run delivered to sqlite:///{tmp_path}/mlflow.db"]
    (run,) = runs(tmp_path / "mlflow.db")
    check_whole(tmp_path / "mlflow.db", run)


def test_a_new_store_is_whole_and_nothing_else_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "new" / "mlflow.db"
    for _ in range(2):  # the second time it is there
        mlflow_store.create_store(file, f"sqlite:///{file}")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert {path.name for path in file.parent.iterdir()} - {".mlflow.db.lock"} == {"mlflow.db"}
    assert client(file).search_experiments()[0].artifact_location == f"{file.parent}/mlruns/0"
