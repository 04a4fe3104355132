"""`diffuse sync` delivers what waits, each run once."""

from __future__ import annotations

from pathlib import Path

from command import diffuse
from processes import LIMIT, fork
from tracked_runs import check_whole, runs, settings, spooled, sync


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
