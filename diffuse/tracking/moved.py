"""Outputs folders that were moved or renamed: what points to the old place is pointed to the new one.

An SQLite store, its files in `mlartifacts` and the runs that wait for it lie beside one another, and MLflow keeps
absolute addresses of the files. Only what is not at its old place any more is touched, so a copy leaves the original
alone.
"""

from __future__ import annotations

import logging
import sqlite3
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
JOURNAL = "mlflow-pending"
_LOCK_SECONDS = 30.0


def repoint_artifacts(file: Path) -> None:
    """Points the runs of an SQLite store to the files beside it, where these were moved together with it.

    MLflow's client has nothing for it, so this writes two columns of its tables. See docs/private-interfaces.md.
    """
    place = file.parent / ARTIFACTS
    if not place.is_dir():
        return
    try:
        address = f"{file.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
            moved = [location for location in _locations(connection) if _has_moved(connection, location, place)]
            if not moved:
                return
            connection.execute("BEGIN IMMEDIATE")
            for location in moved:
                for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? "
                        f"OR substr({column}, 1, ?) = ?",
                        (place.as_uri(), len(location) + 1, location, len(location) + 1, f"{location}/"),
                    )
            connection.execute("COMMIT")
    except sqlite3.Error as error:  # no store of MLflow's, which opening it says; or read-only
        log.warning("%s: where its runs' files are could not be updated: %s", file, error)


def _locations(connection: sqlite3.Connection) -> list[str]:
    """Returns the places of files that the experiments name; none where the file is no store of MLflow's."""
    try:
        return [row[0] for row in connection.execute("SELECT DISTINCT artifact_location FROM experiments") if row[0]]
    except sqlite3.Error:
        return []


def _has_moved(connection: sqlite3.Connection, location: str, place: Path) -> bool:
    """Returns whether files that were at `location`, beside their store, are now at `place`."""
    parts = urllib.parse.urlsplit(location)
    old = Path(urllib.parse.unquote(parts.path))
    if parts.scheme != "file" or old.name != ARTIFACTS or old == place or old.exists():
        return False
    query = "SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ?"
    runs = [row[0] for row in connection.execute(query, (len(location) + 1, f"{location}/"))]
    return not runs or any((place / run).is_dir() for run in runs)


def repoint_store(values: Mapping[str, Any], journal: Path) -> dict[str, Any]:
    """Returns the values of a spool's store (`Store.as_json`), which lies beside `journal` where both were moved."""
    move = _move(values, journal)
    if move is None:
        return dict(values)
    old, new = move
    changed = {"file": str(new / Path(values["file"]).name)}
    changed["uri"] = values["uri"].replace(str(values["file"]), changed["file"])
    if values.get("artifacts") == (old / ARTIFACTS).as_uri():
        changed["artifacts"] = (new / ARTIFACTS).as_uri()
    return {**values, **changed}


def moved_file(path: Path, values: Mapping[str, Any], journal: Path) -> Path:
    """Returns where a file of a waiting run is: at `path`, or where it went together with the store.

    Args:
        values: of the spool's store, as they are on disk.
        journal: the folder of the spool, where it is now.
    """
    move = None if path.exists() else _move(values, journal)
    if move is not None:
        for old, new in _ancestors(*move):
            if path.is_relative_to(old) and (found := new / path.relative_to(old)).exists():
                return found
    return path


def _move(values: Mapping[str, Any], journal: Path) -> tuple[Path, Path] | None:
    """Returns the old and the new folder of a store that was moved with its journal; None where it was not."""
    if not isinstance(values.get("file"), str):
        return None
    old, new = Path(values["file"]).parent, journal.parent
    is_beside = journal.name == JOURNAL and (new / Path(values["file"]).name).exists()
    return (old, new) if is_beside and old != new and not old.exists() else None


def _ancestors(old: Path, new: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the folder that was moved as it may be: this one, or one above it, as far as the names agree."""
    yield old, new
    while old.name and old.name == new.name:
        old, new = old.parent, new.parent
        yield old, new
