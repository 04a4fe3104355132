"""What a `kill -9`, a full disk and several processes at once leave of runs on their way to the store."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command import until
from processes import fork
from tracked_runs import check_whole, record_run, runs, settings, spooled, sync, work

from diffuse import tracking
from diffuse.errors import ConfigError
from diffuse.tracking import journal, mlflow_store


def killed_at_random(file: Path, folder: Path, picture: Path, rounds: int, seed: int) -> dict[str, set[str]]:
    """Has processes killed after a random number of runs, every other with its worker; what they wrote down."""
    draw = random.Random(seed)
    logs = []
    for number in range(rounds):
        log = folder / f"log {number}"
        process = fork(work, file, log, picture)
        lines = draw.randrange(1, 24)  # two a run, after that of the worker
        until(lambda log=log, lines=lines: log.exists() and log.read_text().count("\n") >= lines)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        told = log.read_text().split() if log.exists() else []
        if number % 2 and told:
            with suppress(ProcessLookupError):
                os.kill(int(told[1]), signal.SIGKILL)
        logs.append(told)
    pairs = [(told[i], told[i + 1]) for told in logs for i in range(0, len(told) - 1, 2)]
    return {what: {name for said, name in pairs if said == what} for what in ("begun", "ended")}


def test_killed_at_random_moments_nothing_is_lost_or_doubled(store: Path, picture: Path, tmp_path: Path) -> None:
    did = killed_at_random(store, tmp_path, picture, rounds=4, seed=4)
    assert len(did["begun"]) > 12
    with suppress(ConfigError):
        sync(settings(store))
    assert not (tmp_path / "mlflow-pending").exists()
    made = runs(store)
    count = Counter(run.data.tags["diffuse.run"] for run in made)
    assert set(count.values()) == {1}
    assert did["begun"] <= set(count)
    for run in made:
        name, status = run.data.tags["diffuse.run"], run.info.status
        assert status in (("FINISHED",) if name in did["ended"] else ("FINISHED", "KILLED"))
        assert run.info.end_time >= run.info.start_time
        if status == "FINISHED":
            check_whole(store, run)
        else:
            assert "ended before the run did" in run.data.tags["diffuse.error"]
    ids = {run.info.run_id for run in made}
    left = [path.name for path in (tmp_path / "mlartifacts").glob("*") if path.name not in ids]
    assert left == []


def test_a_run_begun_again_continues_the_one_of_its_name(store: Path, picture: Path) -> None:
    for error in ("the first try failed", None):
        tracker = tracking.open_tracker(settings(store))
        record_run(tracker, picture, id="sweep:job", again=True).finish(error)
        assert tracker.close() == []
    (found,) = runs(store)
    assert found.data.tags["diffuse.run"] == "sweep:job"
    assert found.info.status == "FINISHED"
    assert "diffuse.error" not in found.data.tags
    check_whole(store, found)


def test_a_delivery_killed_at_random_moments_is_taken_up_again(store: Path, picture: Path, tmp_path: Path) -> None:
    for _ in range(2):
        spooled(settings(store), picture, 30)
    draw = random.Random(7)
    for _ in range(6):
        left = len(list(tmp_path.glob("mlflow-pending/*/*.jsonl")))
        process = fork(sync, settings(store))
        until(lambda left=left: len(list(tmp_path.glob("mlflow-pending/*/*.jsonl"))) < left)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
    assert list(tmp_path.glob("mlflow-pending/*/*.jsonl"))
    sync(settings(store))
    assert not (tmp_path / "mlflow-pending").exists()
    made = runs(store)
    assert len({run.data.tags["diffuse.run"] for run in made}) == len(made) == 60
    for run in made:
        assert run.info.status == "FINISHED"
        check_whole(store, run)
    ids = {run.info.run_id for run in made}
    assert [path.name for path in (tmp_path / "mlartifacts").iterdir() if path.name not in ids] == []


@pytest.mark.parametrize("call", ["log", "log_weights", "end", "log_folder"])
def test_a_delivery_that_breaks_off_is_made_again(
    call: str, store: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes the call, and the answer is lost."""
    before = getattr(mlflow_store.Connection, call)

    def broken(*arguments: Any) -> None:
        before(*arguments)
        raise ConnectionError("gone")

    spooled(settings(store), picture)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store.Connection, call, broken)
        if call != "log_weights":
            with pytest.raises(Exception, match="could not be delivered"):
                sync(settings(store))
    sync(settings(store))
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    check_whole(store, run)


def test_a_run_that_the_store_refuses_does_not_stop_the_others(store: Path, picture: Path) -> None:
    folder = spooled(settings(store), picture, 3)
    _, second, third = journal.run_files(folder)
    second.write_bytes(second.read_bytes().replace(b'"value", 1.0', b'"value", "no number"'))
    third.write_bytes(b"\0" * 100 + b"\n")
    with pytest.raises(Exception, match="1 run could not be delivered, and waits on"):
        sync(settings(store))
    made = runs(store)
    assert len(made) == 2
    assert sorted(len(run.data.metrics) for run in made) == [1, 2]  # the damaged line alone is left out
    assert journal.run_files(folder) == [third]


def test_a_picture_that_changed_or_went_is_left_out_and_told(store: Path, picture: Path, tmp_path: Path) -> None:
    changed, gone = (Path(shutil.copy(picture, tmp_path / name)) for name in ("changed.png", "gone.png"))
    spooled(settings(store), changed)
    spooled(settings(store), gone)
    changed.write_bytes(b"something else")
    gone.unlink()
    said = sync(settings(store))
    assert any("changed.png has changed since it was saved" in line for line in said)
    assert any("gone.png" in line for line in said)
    assert len(runs(store)) == 2 and not (tmp_path / "mlflow-pending").exists()
