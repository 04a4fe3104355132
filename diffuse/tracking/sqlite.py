"""Several calls of MLflow on an SQLite store as one transaction.

MLflow commits two or three times a call, and each commit waits for the disk: forty times for a run that took a tenth of
a second. Here a commit in between only sets a savepoint, to which MLflow's own rollback returns, and the disk is waited
for once. MLflow's setting for the pool keeps all of its sessions on one connection, and so in one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"


class _Connection(sqlite3.Connection):
    """A connection that can hold its commits back."""

    holding = False

    def commit(self) -> None:
        if self.holding and self.in_transaction:
            self.execute("RELEASE held")
            self.execute("SAVEPOINT held")
        else:
            super().commit()

    def rollback(self) -> None:
        if self.holding and self.in_transaction:
            self.execute("ROLLBACK TO held")
        else:
            super().rollback()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Commits what happens meanwhile in the end, all of it or, after an exception, nothing."""
        self.execute("BEGIN IMMEDIATE")
        self.execute("SAVEPOINT held")
        self.holding = True
        try:
            yield
        except BaseException:
            self.holding = False
            super().rollback()
            raise
        self.holding = False
        if not self.in_transaction:  # SQLite gave it up by itself, for instance because the disk is full
            raise sqlite3.OperationalError("the transaction was lost")
        super().commit()


@dataclass
class Transactions:
    """An SQLite store's engine, as MLflow made it, and the file that it is connected to."""

    engine: Any
    file: Path
    inode: int

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction of all calls meanwhile, which an exception undoes."""
        connection = self.engine.raw_connection()
        try:
            with connection.driver_connection.held():
                yield
        finally:
            connection.close()  # back to the pool


_opened: dict[Path, Transactions] = {}  # MLflow keeps its engines as long as the process lives, too


def open_with(file: Path, connect: Callable[[], Any]) -> Transactions | None:
    """Has `connect` open the store in `file`. None where MLflow had opened it before, in its own way."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if known := _opened.get(file):
        if known.inode != file.stat().st_ino:  # somebody put another file there
            known.engine.dispose()
            known.inode = file.stat().st_ino
        connect()
        return known

    def note(connection: Any) -> None:
        if getattr(connection.connection.driver_connection, "held", None) and connection.engine.url.database == str(
            file
        ):
            _opened[file] = Transactions(connection.engine, file, file.stat().st_ino)

    if not event.contains(Engine, "do_connect", _connect):
        event.listen(Engine, "do_connect", _connect)
    before = os.environ.get(_POOL)
    os.environ[_POOL] = "StaticPool"
    event.listen(Engine, "engine_connect", note)
    try:
        connect()
    finally:
        event.remove(Engine, "engine_connect", note)
        if before is None:
            del os.environ[_POOL]
        else:
            os.environ[_POOL] = before
    return _opened.get(file)


def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
    if dialect.name != "sqlite":
        return None  # as it always does
    return sqlite3.connect(*arguments, **{**options, "factory": _Connection})
