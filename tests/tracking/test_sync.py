"""`diffuse sync` delivers what waits, each run once."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import diffuse
from processes import LIMIT, fork
from tracked_runs import check_whole, runs, settings, spooled, sync

from diffuse.errors import RunError
from diffuse.schema import TrackingConfig


def test_two_that_sync_at_once_deliver_each_run_once(store: Path, picture: Path) -> None:
    spooled(settings(store), picture, 10)
    spooled(settings(store), picture, 10)
    processes = [fork(sync, settings(store)) for _ in range(2)]
    for process in processes:
        process.join(LIMIT)
    assert [process.exitcode for process in processes] == [0, 0]
    made = runs(store)
    assert len({run.data.tags["diffuse.run"] for run in made}) == len(made) == 20
    for run in made:
        check_whole(store, run)


def test_sync_without_anything_to_do(tmp_path: Path) -> None:
    done = diffuse("sync", cwd=tmp_path)
    assert (done.status, done.out) == (0, "")
    assert done.err == f"nothing waits in {tmp_path}/outputs/mlflow-pending\n"
    done = diffuse("sync", "tracking=none", cwd=tmp_path)
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_named_takes_the_runs_of_a_server_that_is_gone(
    store: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    journal = str(store.parent / "mlflow-pending")
    spooled(settings("http://127.0.0.1:9", journal=journal, experiment="lamps"), picture)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with pytest.raises(RunError, match=r"tracking\.uri=URI names another"):  # the variable takes no runs of others
        sync(TrackingConfig(name="mlflow", journal=journal))
    said = sync(settings(store))
    assert said[0].startswith("warning: the runs' own address=http://127.0.0.1:9: ")
    assert said[1:] == [
        f"http://127.0.0.1:9 cannot be used: 1 run for it to sqlite:///{store}",
        f"1 run delivered to sqlite:///{store}",
    ]
    (run,) = runs(store, "lamps")
    check_whole(store, run)
