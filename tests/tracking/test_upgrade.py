"""A store of an older MLflow is upgraded once, whatever is killed meanwhile; one of a newer MLflow is told so."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy
from alembic import command as alembic
from command import diffuse, until
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from processes import LIMIT, fork
from rich.console import Console
from tracked_runs import record_run, runs, settings, spooled, sync

from diffuse import tracking
from diffuse.cli import doctor
from diffuse.errors import RunError
from diffuse.schema import TrackingConfig
from diffuse.tracking import failures, ui, upgrade
from diffuse.tracking.query import StoreReader

OLD = "71994744cf8e"  # of MLflow 2
PREVIOUS = "75868b020152"  # with all tables of today's
NEWER = "ffffffffffff"


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of an older MLflow, with a run."""
    file = tmp_path_factory.mktemp("old") / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{file}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, OLD)
    engine.dispose()
    with closing(sqlite3.connect(file)) as store:
        store.executescript(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
            f" VALUES (1, 'diffuse', '{file.parent}', 'active');"
            "INSERT INTO runs"
            " (run_uuid, name, user_id, source_type, status, start_time, lifecycle_stage, experiment_id)"
            " VALUES ('abc', 'kept', 'me', 'LOCAL', 'FINISHED', 1, 'active', 1);"
        )
    return file


@pytest.fixture
def older(old: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(old, tmp_path / "mlflow.db"))


def with_revision(file: Path, revision: str) -> Path:
    with closing(sqlite3.connect(file)) as store, store:
        store.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    return file


def content(file: Path) -> str:
    with closing(sqlite3.connect(file)) as store:
        return "\n".join(store.iterdump())


def backups(file: Path) -> list[Path]:
    return sorted(file.parent.glob("*.backup"))


def test_an_older_store_is_upgraded_once_and_stays_beside(older: Path, picture: Path) -> None:
    before = content(older)
    spooled(settings(older), picture)
    said = sync(settings(older))
    (backup,) = backups(older)
    assert [line for line in said if "has been upgraded" in line and str(backup) in line and "warning" in line]
    assert content(backup) == before and OLD in backup.name
    assert [run.info.run_name for run in runs(older)] == ["kept", "run"]
    assert not list(older.parent.glob(".*.tmp*"))
    spooled(settings(older), picture)
    assert sync(settings(older)) == [f"1 run delivered to sqlite:///{older}"]
    assert backups(older) == [backup] and content(backup) == before


def test_a_kill_in_the_middle_and_two_that_start_then(older: Path) -> None:
    before = content(older)
    process = fork(upgrade.upgrade_store, older)
    until(lambda: [file for file in older.parent.glob(".*.tmp") if backups(older) and file.stat().st_size])
    killed = psutil.Process(process.pid)
    killed.suspend()  # or it could start MLflow between the look at its children and its end
    for each in [*killed.children(recursive=True), killed]:
        each.kill()
    process.join()
    assert content(older) == before
    both = [fork(upgrade.upgrade_store, older) for _ in range(2)]
    for process in both:
        process.join(LIMIT)
    assert [process.exitcode for process in both] == [0, 0]
    assert upgrade.store_age(older) == "same" and len(backups(older)) == 1
    assert [run.info.run_name for run in runs(older)] == ["kept"]
    assert not list(older.parent.glob(".*.tmp*"))


def killed_in_copy(number: int, file: Path, upgraded: Path) -> None:
    """An upgrade that is killed in the middle of its copy of that number."""
    copies = 0

    class Killed(sqlite3.Connection):
        def backup(self, target: sqlite3.Connection, **options: Any) -> None:
            nonlocal copies
            copies += 1

            def progress(status: int, remaining: int, total: int) -> None:
                if copies == number and remaining < total / 2:
                    os.kill(os.getpid(), signal.SIGKILL)

            super().backup(target, pages=1, progress=progress)

    connect = sqlite3.connect
    upgrade.sqlite3.connect = lambda *given, **options: connect(*given, factory=Killed, **options)  # type: ignore
    upgrade._run_mlflow = lambda copy: shutil.copy(upgraded, copy)  # type: ignore
    upgrade.upgrade_store(file)


@pytest.mark.parametrize("number", [1, 2, 3], ids=["of the backup", "of the copy", "of the way back"])
def test_a_kill_in_a_copy(number: int, older: Path, empty: Path) -> None:
    before = content(older)
    process = fork(killed_in_copy, number, older, empty)
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    assert content(older) == before and upgrade.store_age(older) == "older"


def test_one_that_cannot_be_upgraded_is_as_it_was(store: Path, picture: Path) -> None:
    """As a kill left it where the upgrade was in place: the tables are there, and the schema is the older one's."""
    before = content(with_revision(store, PREVIOUS))
    tracker = tracking.open_tracker(settings(store))
    record_run(tracker, picture).finish()
    (line,) = tracker.close()
    assert "could not be upgraded from its schema" in line and "1 run waits" in line
    assert content(store) == before and not list(store.parent.glob(".*.tmp*"))


def test_one_that_another_program_writes_to_is_left_alone(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(older)
    with closing(sqlite3.connect(older, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(upgrade, "LOCK_SECONDS", 0.1)
        with pytest.raises(upgrade.UnusableStore, match="another program uses it"):
            upgrade.upgrade_store(older)
    assert content(older) == before and backups(older) == []


def test_a_store_of_a_newer_mlflow_is_told_so_in_one_line(store: Path, picture: Path, tmp_path: Path) -> None:
    before = content(with_revision(store, NEWER))
    expected = f"tracking.uri=sqlite:///{store}: was made by a newer MLflow, whose schema {NEWER} this one does not"
    tracker = tracking.open_tracker(settings(store))
    record_run(tracker, picture).finish()
    (line,) = tracker.close()
    assert line.startswith(expected) and "1 run waits" in line
    for refused in (lambda: StoreReader(settings(store)), lambda: ui.serve(settings(store))):
        with pytest.raises(RunError) as found:
            refused()
        assert str(found.value).startswith(expected) and "\n" not in str(found.value)
    done = diffuse("sync", f"tracking.uri=sqlite:///{store}", cwd=tmp_path)
    assert done.status == 1 and expected in done.err.splitlines()[0], done.err
    text = io.StringIO()
    Console(file=text, width=300).print(doctor._tracking(TrackingConfig(name="mlflow", uri=f"sqlite:///{store}")))
    assert "of a newer MLflow" in text.getvalue()
    assert content(store) == before


@pytest.mark.parametrize(
    ("text", "is_newer"),
    [
        (f"Can't locate revision identified by '{NEWER}'", True),
        (f"Detected out-of-date database schema (found version {NEWER}, but expected dc11669786a5). Take", True),
        (f"Detected out-of-date database schema (found version {PREVIOUS}, but expected dc11669786a5). Take", False),
    ],
)
def test_what_mlflow_says_of_a_database_of_another_version(text: str, is_newer: bool) -> None:
    assert ("was made by a newer MLflow" in failures.error_line(Exception(text))) == is_newer


def test_files_that_are_no_store_are_left_to_mlflow(tmp_path: Path) -> None:
    for name, data in (("text.db", b"no database" * 100), ("empty.db", b"")):
        (tmp_path / name).write_bytes(data)
        upgrade.upgrade_store(tmp_path / name)
        assert (tmp_path / name).read_bytes() == data
    with suppress(sqlite3.Error), closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    assert upgrade.store_age(tmp_path / "other.db") == "unknown"


@pytest.mark.parametrize("tables", ["experiments (a)", "runs (a); CREATE TABLE experiments (experiment_id)"])
def test_another_programs_file_is_left_alone(tables: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.db"
    with closing(sqlite3.connect(file)) as store:
        store.executescript(f"CREATE TABLE alembic_version (version_num); CREATE TABLE {tables};")
    before = file.read_bytes()
    with pytest.raises(upgrade.UnusableStore, match="is no store of MLflow's"):
        upgrade.upgrade_store(file)
    assert file.read_bytes() == before
