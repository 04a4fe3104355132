"""Runs that go into an SQLite store as rows, beside the same ones by MLflow's own calls: the tables are equal."""

from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from diffuse import tracking
from diffuse.schema import TrackingConfig
from diffuse.tracking import delivery, journal, mlflow_store, rows
from diffuse.tracking.store import Store

TABLES = ("runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags")
DRAWN = ("run_uuid", "artifact_uri", "dataset_uuid", "input_uuid", "source_id", "destination_id")
WEIGHTS = {"source": "owner/model", "revision": "a" * 40, "variant": None, "sha256": "b" * 64}


class Idle:
    """In the place of the worker: what comes into the journal stays there."""

    def open(self, *arguments: Any) -> None: ...

    def wake(self) -> None: ...

    def run_id(self, name: str) -> None: ...


@pytest.fixture
def file(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "mlflow.db"))


@pytest.fixture
def store(file: Path) -> Store:
    return Store.of(TrackingConfig(name="mlflow", uri=f"sqlite:///{file}"))


@pytest.fixture
def waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spool of runs of all kinds that have ended."""
    monkeypatch.setattr(tracking.process, "worker", Idle)
    moments = iter(range(10**6, 10**7))
    monkeypatch.setattr(tracking, "_now", lambda: next(moments))
    tracker = tracking.JournaledTracker(store)

    tracker.start("nothing logged", {}, {}, {}).finish()
    local = {**WEIGHTS, "source": "/models/\udcff", "components": {"vae": WEIGHTS}}
    for number, weights in enumerate((WEIGHTS, WEIGHTS, local, {**WEIGHTS, "sha256": "c" * 64})):
        params = {
            "seed": number,
            "prompt": "x" * 7000,
            "on": True,
            "none": None,
            "list": [1, 2],
            "odd (key)": "é\udcff",
        }
        run = tracker.start(f"run {number}", params, {"diffuse.sweep": "s"}, {"note.txt": "note"}, weights=weights)
        run.log_steps([0.5, 0.25, 0.125])
        run.log_metrics({"time/total_s": 3.0, "quality": math.nan, "most": math.inf, "least": -math.inf, "no": None})
        run.log_steps([1.0, 0.0625])
        run.set_tags({"diffuse.sweep": "t", "long": "y" * 9000})
        run.finish(*(["failed: for a reason"] if number == 1 else []), interrupted=number == 2)
    many = tracker.start("many", {f"p{number}": number for number in range(250)}, {}, {})
    many.log_metrics({f"m{number}": number for number in range(1200)})
    many.finish()
    assert tracker._spool is not None
    tracker._spool.close()
    return tracker._spool.folder


def delivered(spool: Path, store: Store, *, foreign: bool = False) -> list[str]:
    """Brings what waits to a store, which perhaps others have tried; what went wrong."""
    claim = journal.claim(spool)
    assert claim is not None
    deliverer = delivery.Deliverer(store, lambda *_: None)
    deliverer.deliver(delivery.Spool(claim, store, foreign=foreign, warn=deliverer.warn), everything=True)
    claim.release(remove=False)
    return list(deliverer.warnings.values())


def tables(file: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows, sorted; what is drawn at random, by what it belongs to."""
    with sqlite3.connect(file) as connection:
        connection.row_factory = sqlite3.Row
        found = {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in TABLES}
    names = {row["run_uuid"]: row["name"] for row in found["runs"]}
    names |= {row["dataset_uuid"]: f"{row['name']} {row['digest']}" for row in found["datasets"]}
    names |= {row["input_uuid"]: f"{row['source_id']} {row['destination_id']}" for row in found["inputs"]}
    for row in (row for table in found.values() for row in table):
        for column in {*row} & {*DRAWN}:
            for drawn, name in names.items():
                row[column] = str(row[column]).replace(drawn, name)
            for drawn, name in names.items():  # of an input, which is named by two of the others
                row[column] = row[column].replace(drawn, name)
    return {name: sorted(rows, key=lambda row: str(sorted(row.items()))) for name, rows in found.items()}


def test_rows_are_those_that_mlflow_writes(
    waiting: Path, store: Store, file: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = shutil.copytree(waiting, tmp_path / "kept")
    found = []
    for calls in (True, False):
        shutil.copy(empty, file)
        with monkeypatch.context() as patch:
            patch.delattr(mlflow_store.Connection, "add" if calls else "create")
            if calls:
                patch.setattr(delivery.Run, "is_whole", False)
            assert delivered(waiting, store) == []
        found.append(tables(file))
        file.unlink()
        shutil.copytree(kept, waiting, dirs_exist_ok=True)
    by_calls, by_rows = found
    assert [len(by_calls[name]) for name in ("runs", "datasets", "inputs")] == [6, 3, 4]
    assert min(map(len, by_calls.values())) > 0
    for name in TABLES:
        assert by_rows[name] == by_calls[name], name


def test_of_runs_that_others_tried_to_deliver_the_new_ones_go_as_rows(
    waiting: Path, store: Store, file: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = shutil.copytree(waiting, tmp_path / "kept")
    for run in journal.runs(waiting)[:2]:
        run.unlink()
    delivered(waiting, store)
    shutil.copytree(kept, waiting, dirs_exist_ok=True)
    found: list[str] = []
    find = mlflow_store.Connection.find

    def watched(self: Any, experiment: str, name: str) -> Any:
        found.append(name)
        return find(self, experiment, name)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store.Connection, "find", watched)
        patch.delattr(mlflow_store.Connection, "create")
        assert delivered(waiting, store, foreign=True) == []
    assert len(found) == 4
    by_both = tables(file)
    file.unlink()
    shutil.copytree(kept, waiting, dirs_exist_ok=True)
    shutil.copy(empty, file)
    delivered(waiting, store)
    for name in TABLES:
        assert by_both[name] == tables(file)[name], name


def test_rows_that_break_off_are_none(waiting: Path, store: Store, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = rows.insert

    def broken(*arguments: Any) -> None:
        assert len(insert(*arguments)) == 6
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "insert", broken)
        with pytest.raises(ConnectionError):
            delivered(waiting, store)
    assert not any(tables(file).values())
    assert delivered(waiting, store) == []
    assert len(tables(file)["runs"]) == 6


def test_what_rows_cannot_hold_is_left_to_mlflow(waiting: Path, store: Store, file: Path) -> None:
    """A name that MLflow refuses costs its run that value, and the others nothing."""
    first = journal.runs(waiting)[0]
    first.write_bytes(first.read_bytes().replace(b'"params": {', b'"params": {"../up": 1', 1))
    (warning,) = delivered(waiting, store)
    assert "refused" in warning and "../up" in warning
    assert len(tables(file)["runs"]) == 6


def test_no_run_comes_into_a_deleted_experiment(waiting: Path, store: Store, file: Path) -> None:
    """Not even where it is deleted after the store was opened."""
    connection = mlflow_store.Connection(store)
    experiment = connection.experiment(store)
    MlflowClient(store.uri).delete_experiment(experiment)
    runs = [delivery.Run(file, doubtful=False) for file in journal.runs(waiting)]
    for run in runs:
        run.read()
    with pytest.raises(ValueError, match="is deleted"), connection.transaction():
        connection.add(experiment, [run.ended() for run in runs])
    assert tables(file)["runs"] == []
