"""The worker process seen from outside: it dies, or its store is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import check_whole, record_run, runs, settings

from diffuse import tracking
from diffuse.tracking import process as worker_process
from diffuse.tracking.store import Store


def test_a_worker_that_dies_is_told_and_what_it_left_is_delivered_next(store: Path, picture: Path) -> None:
    tracker = tracking.open_tracker(settings(store))
    os.kill(worker_process.worker(Store.from_config(settings(store))).pid or 0, signal.SIGKILL)
    record_run(tracker, picture).finish()
    (warning,) = tracker.close()
    assert "1 run waits in" in warning and "diffuse sync" in warning
    tracker = tracking.open_tracker(settings(store))
    assert tracker.close() == []
    (run,) = runs(store)
    check_whole(store, run)


def test_a_store_that_was_replaced_gets_the_next_runs(store: Path, empty: Path, picture: Path) -> None:
    """MLflow keeps a database open as long as its process lives, and would write into the file that is gone."""
    for _ in range(2):
        tracker = tracking.open_tracker(settings(store))
        record_run(tracker, picture).finish()
        assert tracker.close() == []
        assert len(runs_of_file(store)) == 1
        store.unlink()
        shutil.copy(empty, store)


def test_a_worker_that_is_slow_beside_other_work_is_waited_for() -> None:
    stall = worker_process.Stall(100.0)
    computing = [stall.has_come(float(now), message_time=0.0, used=now / 50) for now in range(0, 1000, 10)]
    assert not any(computing)
    waiting = [stall.has_come(990.0 + now, message_time=0.0, used=20.0 + now / 1000) for now in range(0, 120, 10)]
    assert waiting.index(True) * 10 == 110 and not stall.has_come(1200.0, message_time=1150.0, used=20.1)


def test_a_worker_that_does_nothing_is_told(store: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "STALL_SECONDS", 0.1)
    tracker = tracking.open_tracker(settings(store))
    worker = worker_process.worker(Store.from_config(settings(store)))
    pid = worker.pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        record_run(tracker, picture).finish()
        assert "did nothing for 0.1 s" in " ".join(tracker.close())
    finally:
        os.kill(pid, signal.SIGKILL)
        assert worker._process is not None
        worker._process.wait()  # or the next test would take it for one that lives


def runs_of_file(file: Path) -> list[Any]:
    with sqlite3.connect(file) as connection:  # not with MLflow, for the same reason
        return list(connection.execute("SELECT * FROM runs"))
