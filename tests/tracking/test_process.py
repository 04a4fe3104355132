"""The worker process seen from outside: it dies, or its store is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

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


def runs_of_file(file: Path) -> list[Any]:
    with sqlite3.connect(file) as connection:  # not with MLflow, for the same reason
        return list(connection.execute("SELECT * FROM runs"))
