"""The process that delivers: while a run goes on, and after the other process was killed."""

from __future__ import annotations

from pathlib import Path

from command import until
from processes import fork
from tracked_runs import check_whole, record_run, runs, settings, sync, work

from diffuse import tracking


def test_the_worker_delivers_what_a_killed_process_left(store: Path, picture: Path, tmp_path: Path) -> None:
    process = fork(work, store, tmp_path / "log", picture, 0.3)
    until(lambda: len(runs(store)) > 2)
    process.kill()
    process.join()
    until(lambda: not (tmp_path / "mlflow-pending").exists())
    assert {run.info.status for run in runs(store)} <= {"FINISHED", "KILLED"}


def test_a_long_run_is_seen_while_it_goes_on(store: Path, picture: Path) -> None:
    tracker = tracking.open_tracker(settings(store))
    run = record_run(tracker, picture)
    until(lambda: run.run_id is not None)
    (found,) = runs(store)
    assert (found.info.status, found.data.params) == ("RUNNING", {"a": "1"})
    assert sync(settings(store)) == ["1 run of a process that is still at work: left to it"]
    run.finish("it failed")
    assert tracker.close() == []
    (found,) = runs(store)
    assert (found.info.run_id, found.info.status) == (run.run_id, "FAILED")
    check_whole(store, found)
