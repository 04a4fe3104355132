"""Upgrades an SQLite store of an older MLflow, once, and tells one of a newer MLflow. MLflow is not imported here.

MLflow upgrades in place, in steps, and a store whose upgrade is killed is of no use to any version. So a copy is
upgraded, under the lock that the creation of a store has, while nobody else can write; and it replaces what is in the
store in one transaction of SQLite's, which a kill undoes. The store as it was stays beside it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from diffuse.tracking.address import sqlalchemy_uri

LOCK_SECONDS = 90  # for another process to create or upgrade the store
# Of tables that MLflow has had from the start, a column.
_KEYS = {"experiments": "experiment_id", **dict.fromkeys(("runs", "metrics", "params", "tags"), "run_uuid")}
_UPGRADE_SECONDS = 3600  # of a large store
_MIGRATION = re.compile(r"^(down_)?revision\b[^=\n]*=(.*)$", re.MULTILINE)
_BACKGROUND = "(Background on this error"  # SQLAlchemy ends each of its errors with a link
_notes: list[str] = []  # for the user


class UnusableStore(Exception):
    """A store that MLflow cannot use as it is."""


def store_lock(file: Path) -> FileLock:
    """Returns the lock under which a store is created and upgraded."""
    return FileLock(file.with_name(f".{file.name}.lock"), timeout=LOCK_SECONDS)


def upgrade_store(file: Path) -> None:
    """Upgrades a store that is there, if it is an older MLflow's.

    Raises:
        UnusableStore: it is a newer MLflow's or another program's, or cannot be upgraded, and is as it was.
    """
    age = store_age(file)
    if age == "unknown" and (table := _foreign_table(file)) is not None:
        raise UnusableStore(
            f"is no store of MLflow's, which has another table {table}; give another file as tracking.uri"
        )
    if age == "older":
        try:
            with store_lock(file):
                if store_age(file) == "older":
                    _upgrade(file)
        except Timeout as error:
            raise UnusableStore("is being upgraded by another process, which takes long; try again later") from error
        except OSError as error:
            raise UnusableStore(f"is an older MLflow's, and its folder cannot be written: {error.strerror}") from error
        age = store_age(file)
    if age == "newer":
        raise UnusableStore(newer_line(_revision(file)))


def store_age(file: Path) -> str:
    """Returns whether a store is an `older` or `newer` MLflow's, or of this one; `unknown` where that is for it to say.

    Changes nothing, and waits for another process that upgrades it.
    """
    revision, revisions = _revision(file), known_revisions()
    if revision is None or not revisions:
        return "unknown"
    if revision not in revisions:
        return "newer"
    return "older" if any(revision in before for before in revisions.values()) else "same"


def is_known_revision(revision: str) -> bool:
    """Returns whether the installed MLflow knows a schema of databases; True where that cannot be known."""
    return revision in known_revisions() or not known_revisions()


def newer_line(revision: str | None) -> str:
    """Returns what to say of a database of a newer MLflow."""
    return (
        f"was made by a newer MLflow, whose schema {revision} this one does not know; "
        "pip install --upgrade mlflow, or give another tracking.uri"
    )


def take_notes() -> list[str]:
    """Returns a line for each store that was upgraded since the last call."""
    notes = list(_notes)
    _notes.clear()
    return notes


def _upgrade(file: Path) -> None:
    revision = _revision(file)
    backup = file.with_name(f"{file.name}.{revision}.backup")
    for rest in file.parent.glob(f".{file.name}-*.tmp*"):  # of a process that was killed; we have the lock
        rest.unlink(missing_ok=True)
    copy = file.with_name(f".{file.name}-{secrets.token_hex(8)}.tmp")
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)) as store:
            store.execute("PRAGMA locking_mode=EXCLUSIVE")  # until it is closed
            store.execute("BEGIN EXCLUSIVE")
            store.execute("COMMIT")
            _copy(store, copy)
            os.replace(copy, backup)
            _copy(store, copy)
            _run_mlflow(copy)
            if store_age(copy) != "same":
                raise UnusableStore(f"it has the schema {_revision(copy)} afterwards")
            with closing(sqlite3.connect(copy)) as upgraded:
                upgraded.backup(store)
    except (OSError, sqlite3.Error, subprocess.SubprocessError, UnusableStore) as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(_BACKGROUND)]
        reason = lines[-1].strip() if lines else type(error).__name__
        if "locked" in str(error):
            reason = "another program uses it; end that one, such as an older diffuse ui"
        raise UnusableStore(
            f"is an older MLflow's, could not be upgraded from its schema {revision}, and is as it was: {reason}"
        ) from error
    finally:
        for rest in file.parent.glob(f"{copy.name}*"):  # with SQLite's journal
            rest.unlink(missing_ok=True)
    _notes.append(f"{file} was an older MLflow's and has been upgraded; as it was, it is {backup}")


def _copy(store: sqlite3.Connection, file: Path) -> None:
    with closing(sqlite3.connect(file)) as copy:
        store.backup(copy)


def _run_mlflow(copy: Path) -> None:
    """Has MLflow upgrade a database. Raises UnusableStore where it cannot."""
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", sqlalchemy_uri(f"sqlite:///{copy}")]
    done = subprocess.run(
        command,
        cwd=copy.parent,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_UPGRADE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise UnusableStore(done.stderr or f"mlflow db upgrade ended with {done.returncode}")


def _foreign_table(file: Path) -> str | None:
    """Returns a table with the name of one of MLflow's that is another program's: MLflow would fail halfway."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)) as store:
            for table, key in _KEYS.items():
                columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
                if columns and key not in columns:
                    return table
    except sqlite3.Error:  # MLflow says better what is wrong
        pass
    return None


def _revision(file: Path) -> str | None:
    """Returns the schema that a store says it has; None if it says none."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=LOCK_SECONDS)) as store:
            row = store.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:  # MLflow says better what is wrong
        return None
    return None if row is None else str(row[0])


@cache
def known_revisions() -> dict[str, tuple[str, ...]]:
    """Returns the schemas of databases that the installed MLflow knows, each with those that it follows."""
    spec = importlib.util.find_spec("mlflow")
    revisions: dict[str, tuple[str, ...]] = {}
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for file in Path(place, "store", "db_migrations", "versions").glob("*.py"):
            said = {down: re.findall(r"""["'](\w+)["']""", text) for down, text in _MIGRATION.findall(file.read_text())}
            if said.get(""):
                revisions[said[""][0]] = tuple(said.get("down_", ()))
    return revisions
