"""What a `kill -9`, a full disk and several processes at once leave of runs on their way to the store."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command import SMOKE, diffuse, until
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from diffuse import tracking
from diffuse.errors import ConfigError
from diffuse.schema import TrackingConfig
from diffuse.tracking import delivery, journal, mlflow_store, system, worker
from diffuse.tracking import process as worker_process
from diffuse.tracking.images import stage_image
from diffuse.tracking.query import StoreReader
from diffuse.tracking.store import Store
from diffuse.tracking.sync import sync as deliver
from diffuse.tracking.tags import LOGGED_IMAGES, SWEEP_KIND
from diffuse.tracking.tracker import JournaledRun, JournaledTracker


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "mlflow.db"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.radial_gradient("L").resize((64, 64)).save(path)
    return path


def settings(file: Path, **options: Any) -> TrackingConfig:
    return TrackingConfig(name="mlflow", uri=f"sqlite:///{file}", **options)


def runs(file: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{file}")
    found = client.get_experiment_by_name("diffuse")
    return list(client.search_runs([found.experiment_id])) if found else []


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


def work(file: Path, log: Path, picture: Path) -> None:
    """Begins and ends runs until it is killed, and writes down what it did."""
    tracker = tracking.open_tracker(settings(file))
    with log.open("w") as done:
        print("worker", worker_process.worker(Store.from_config(settings(file))).pid, file=done, flush=True)
        while True:
            run = record_run(tracker, picture)
            print("begun", run.id, file=done, flush=True)
            time.sleep(0.03)
            run.finish()
            print("ended", run.id, file=done, flush=True)


def killed_at_random(file: Path, folder: Path, picture: Path, rounds: int, seed: int) -> dict[str, set[str]]:
    """Has processes killed after random times, every other with its worker; what they wrote down."""
    draw = random.Random(seed)
    logs = []
    for number in range(rounds):
        log = folder / f"log {number}"
        process = multiprocessing.get_context("fork").Process(target=work, args=(file, log, picture))
        process.start()
        time.sleep(draw.uniform(0.1, 3))
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
    did = killed_at_random(store, tmp_path, picture, rounds=6, seed=4)
    assert len(did["begun"]) > 20
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


def test_the_worker_delivers_what_a_killed_process_left(store: Path, picture: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=work, args=(store, tmp_path / "log", picture))
    process.start()
    until(lambda: len(runs(store)) > 2, 60)
    process.kill()
    process.join()
    until(lambda: not (tmp_path / "mlflow-pending").exists(), 60)
    assert {run.info.status for run in runs(store)} <= {"FINISHED", "KILLED"}


def test_a_long_run_is_seen_while_it_goes_on(store: Path, picture: Path) -> None:
    tracker = tracking.open_tracker(settings(store))
    run = record_run(tracker, picture)
    until(lambda: run.run_id is not None, 60)
    (found,) = runs(store)
    assert (found.info.status, found.data.params) == ("RUNNING", {"a": "1"})
    assert sync(settings(store)) == ["1 run of a process that is still at work: left to it"]
    run.finish("it failed")
    assert tracker.close() == []
    (found,) = runs(store)
    assert (found.info.run_id, found.info.status) == (run.run_id, "FAILED")
    check_whole(store, found)


def test_a_run_that_goes_on_gets_system_metrics(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "_LIVE_SECONDS", 0.0)
    address = Store.from_config(settings(store))
    spool = journal.Spool(address)
    entry = spool.entry()
    begin = {"id": "long", "name": "long", "time": 1000, "again": False}
    entry.append({"time": 1000, "begin": begin, "params": {}})
    work = worker.SpoolWorker(spool.folder, address, lambda message: None)
    for _ in range(6):
        work.step()
    entry.append({"time": 2000, "end": "FINISHED"})
    assert work.close(orphaned=True) == []
    (run,) = runs(store)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
    history = MlflowClient(address.uri).get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert len(history) > 1 and [row.step for row in history] == list(range(len(history)))
    spool.close()


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


def test_two_that_sync_at_once_deliver_each_run_once(store: Path, picture: Path) -> None:
    spooled(settings(store), picture, 10)
    spooled(settings(store), picture, 10)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=sync, args=(settings(store),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    made = runs(store)
    assert len({run.data.tags["diffuse.run"] for run in made}) == len(made) == 20
    for run in made:
        check_whole(store, run)


def test_a_delivery_killed_at_random_moments_is_taken_up_again(
    store: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        spooled(settings(store), picture, 120)
    draw = random.Random(7)
    for _ in range(6):
        left = len(list(tmp_path.glob("mlflow-pending/*/*.jsonl")))
        process = multiprocessing.get_context("fork").Process(target=sync, args=(settings(store),))
        process.start()
        until(lambda left=left: len(list(tmp_path.glob("mlflow-pending/*/*.jsonl"))) < left, 60)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
    assert list(tmp_path.glob("mlflow-pending/*/*.jsonl"))
    sync(settings(store))
    assert not (tmp_path / "mlflow-pending").exists()
    made = runs(store)
    assert len({run.data.tags["diffuse.run"] for run in made}) == len(made) == 240
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
    assert sorted(len(run.data.metrics) for run in made) == [0, 2]
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


def test_a_password_is_not_left_in_the_journal(picture: Path, tmp_path: Path) -> None:
    journal = str(tmp_path / "pending")
    cfg = TrackingConfig(name="mlflow", uri="http://name:hunter2@127.0.0.1:9/", journal=journal)
    folder = spooled(cfg, picture)
    assert not any(b"hunter2" in path.read_bytes() for path in folder.iterdir())
    said: list[str] = []
    with pytest.raises(Exception, match="1 run could not be delivered"):
        deliver(TrackingConfig(name="mlflow", uri=f"sqlite:///{tmp_path}/x.db", journal=journal), said.append)
    assert "password" in said[0]
    said.clear()
    with pytest.raises(Exception, match="1 run could not be delivered"):
        deliver(cfg, said.append)
    assert "does not answer" in said[0] and "hunter2" not in said[0]


def test_a_full_disk_tears_no_line_and_what_was_not_written_follows(tmp_path: Path, monkeypatch: Any) -> None:
    entry = journal.Entry(tmp_path / "run.jsonl")
    entry.append({"n": 1})
    before = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 5:
            return before(handle, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError):
            entry.append({"n": 2})
    assert journal.read_events(entry.file)[0] == [{"n": 1}]
    entry.append({"n": 3})
    assert journal.read_events(entry.file)[0] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_journal_on_a_full_disk_costs_no_picture(store: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", small], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        done = diffuse(
            *SMOKE, f"tracking.uri=sqlite:///{store}", f"tracking.journal={small}/journal", "output.dir=out",
            cwd=tmp_path,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    assert done.status == 0
    assert Image.open(tmp_path / done.paths[0]).size == (64, 64)
    warnings = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "No space left" in warnings[0] and "saved all the same" in warnings[0]


def test_a_journal_that_cannot_be_made_costs_no_picture(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = diffuse(
        *SMOKE, f"tracking.uri=sqlite:///{store}", "tracking.journal=file/journal", "output.dir=out", cwd=tmp_path
    )
    assert done.status == 0 and len(done.paths) == 1
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert "file" in warning and "not tracked" in warning


def test_sync_without_anything_to_do(tmp_path: Path) -> None:
    done = diffuse("sync", cwd=tmp_path)
    assert (done.status, done.out) == (0, "")
    assert done.err == f"nothing waits in {tmp_path}/outputs/mlflow-pending\n"
    done = diffuse("sync", "tracking=none", cwd=tmp_path)
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_summary_of_a_sweep_has_its_files(store: Path, tmp_path: Path) -> None:
    page, sheet = tmp_path / "report.html", tmp_path / "sheet.txt"
    page.write_text("<p>the report</p>")
    sheet.write_text("a sheet")
    tracker = tracking.open_tracker(settings(store))
    job = tracker.start("job", {}, {"diffuse.sweep": "0123abcd"}, {})
    job.finish()
    run = tracker.start("sweep", {}, {"diffuse.sweep": "0123abcd", **SWEEP_KIND}, {})
    run.log_files("report", [page, sheet])
    run.finish()
    assert tracker.close() == []
    reader = StoreReader(settings(store))
    assert [found.run_id for found in reader.sweep("0123")] == [job.run_id]
    summary = reader.run(str(run.id))
    assert summary.tags["diffuse.kind"] == "sweep"
    files = reader.fetch(summary, "report", tmp_path / "fetched")
    assert [path.read_text() for path in files] == ["<p>the report</p>", "a sheet"]
    page.write_text("<p>another</p>")
    tracker = tracking.open_tracker(settings(store))
    again = tracker.start("sweep", {}, {}, {}, id=run.id, again=True)
    again.log_files("report", [page, tmp_path / "gone"])
    again.finish()
    (warning,) = tracker.close()
    assert "gone is gone" in warning
    files = reader.fetch(summary, "report", tmp_path / "again")
    assert [(path.name, path.read_text()) for path in files] == [("report.html", "<p>another</p>")]
    with pytest.raises(ConfigError, match="there is no sweep"):
        reader.sweep("ffff")
    with pytest.raises(ConfigError, match="there is no run"):
        reader.run("ffff")
    with pytest.raises(ConfigError, match="there is no experiment"):
        reader.experiment("nowhere")


def test_pictures_are_named_as_mlflow_names_them(picture: Path, store: Path, tmp_path: Path) -> None:
    """The page finds pictures by their names, which MLflow's own log_image is asked for here."""
    client = MlflowClient(f"sqlite:///{store}")
    run = client.create_run(client.create_experiment("x", artifact_location=(tmp_path / "files").as_uri()))
    with Image.open(picture) as image:
        client.log_image(run.info.run_id, image.convert("RGB"), key="image", step=3, timestamp=run.info.start_time)
    theirs = Path(run.info.artifact_uri.removeprefix("file://"))
    stage_image(picture, tmp_path / "files", run.info.run_id, run.info.start_time, step=3)

    def shapes(folder: Path) -> set[str]:
        parts = (path.name.split("+") for path in (folder / "images").iterdir())
        return {"+".join([*found[:5], *(["compressed.webp"] if len(found) > 6 else [".png"])]) for found in parts}

    assert shapes(tmp_path / "files") == shapes(theirs)
    assert client.get_run(run.info.run_id).data.tags.items() >= LOGGED_IMAGES.items()


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


def test_a_worker_killed_while_it_makes_the_store_leaves_no_half_of_it(picture: Path, tmp_path: Path) -> None:
    cfg = settings(tmp_path / "mlflow.db")
    tracker = tracking.open_tracker(cfg)
    record_run(tracker, picture).finish()
    until(lambda: any(path.stat().st_size for path in tmp_path.glob(".mlflow.db-*.tmp")), 60)
    os.kill(worker_process.worker(Store.from_config(cfg)).pid or 0, signal.SIGKILL)
    assert "1 run waits in" in tracker.close()[0]
    assert not (tmp_path / "mlflow.db").exists()
    assert sync(cfg) == [f"1 run delivered to sqlite:///{tmp_path}/mlflow.db"]
    (run,) = runs(tmp_path / "mlflow.db")
    check_whole(tmp_path / "mlflow.db", run)
