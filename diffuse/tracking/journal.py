"""Runs on their way to a tracking store, kept on disk until the store has them.

A process that records runs has a folder of its own in the journal, its spool, and a file in there for each run: a JSON
object a line, an event. A line is written before anything else happens with it. So a `kill -9` leaves what was known
until then, less a half-written line at the most, and the locks, which end with their processes, say who may go on:
`writer.lock` is held as long as runs are added, `delivery.lock` by the one process that brings them to the store. Who
delivers a run removes its file, and with the last one the folder. `store.json` says which store the runs are for.

An event has its `time` in milliseconds, and any of: `begin` (`id`, `name`, `time`, `again`) with `params`, `tags`,
`metrics` (name, value, step), `texts` by file name, `media` (`path`, `step`, `sha256`, `key`), `files` (paths by the
name to put them below), `weights`, `end` (the status).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffuse.media.files import sync_folder
from diffuse.tracking.moved import repoint_store
from diffuse.tracking.store import Store

_STORE = "store.json"
_WRITER = "writer.lock"
_DELIVERY = "delivery.lock"
_RUN = ".jsonl"
_NEW = ".new-"  # begins the name of a spool that is being created
_NEW_SECONDS = 60  # after this time such a folder is left from a killed process
_LOCK_SECONDS = 0.2  # longer than another process holds a lock only to look
_ATTEMPTS = 5


class Entry:
    """A run's file, as it is written."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._size = 0
        self._unwritten = b""

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises OSError where it cannot be written in full, for instance because the disk is full. Then the next call
        tries again, and readers see nothing of the line until then.
        """
        self._unwritten += json.dumps(event).encode() + b"\n"
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.lseek(handle, self._size, os.SEEK_SET)
            written = 0
            try:
                while written < len(self._unwritten):
                    written += os.write(handle, self._unwritten[written:])
            except OSError:
                os.ftruncate(handle, self._size)
                if not self._size:
                    self.file.unlink(missing_ok=True)
                raise
            self._size += written
            self._unwritten = b""
            if "end" in event:
                # Once a run: what it has reported survives a loss of power. ext4, XFS and Btrfs keep a new file's name
                # with it; to sync the folder too would cost as much again.
                os.fsync(handle)
        finally:
            os.close(handle)


class Spool:
    """The runs of this process that are on their way to one store."""

    def __init__(self, store: Store) -> None:
        """Creates the folder. Raises OSError where that cannot be done."""
        name = f"{time.time_ns():x}-{secrets.token_hex(4)}"
        folders = store.journal, *store.journal.parents  # innermost first
        self._new_folders = [path for path in folders if not path.exists()]
        unfinished = store.journal / f"{_NEW}{name}"
        _create(unfinished)
        self._lock = FileLock(unfinished / _WRITER, thread_local=False)
        self.folder = store.journal / name
        try:
            self._lock.acquire(timeout=0)
            _write_store(unfinished, store)
            unfinished.rename(self.folder)
            for folder in (self.folder, store.journal, *(path.parent for path in self._new_folders)):
                sync_folder(folder)
        except OSError:
            self._lock.release()
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self._count = 0

    def entry(self) -> Entry:
        """Returns the file of a new run, which does not exist until something is appended."""
        self._count += 1
        return Entry(self.folder / f"{self._count:08}{_RUN}")

    def close(self) -> None:
        """Ends the writing. The folder is removed if nothing waits in it."""
        if not run_files(self.folder):
            _remove(self.folder)
            for path in (self.folder.parent, *self._new_folders):
                with suppress(OSError):
                    path.rmdir()  # refuses one that is not empty
        self._lock.release()


class Claim:
    """The right to deliver what is in a spool; see `claim`."""

    def __init__(self, spool: Path, lock: FileLock) -> None:
        self.spool = spool
        self._lock = lock

    def release(self, *, remove: bool) -> None:
        """Gives the right back. `remove`: the writer is gone, so the spool is removed if nothing waits in it."""
        if remove and not run_files(self.spool):
            _remove(self.spool)
            with suppress(OSError):
                self.spool.parent.rmdir()
        self._lock.release()


def claim(spool: Path, wait: float = 0) -> Claim | None:
    """Returns the right to deliver `spool`; None where another process has it, or the spool is gone.

    Args:
        wait: seconds to wait for the other process.
    """
    lock = FileLock(spool / _DELIVERY, thread_local=False)
    try:
        if spool.is_dir():  # or the lock would create it
            lock.acquire(timeout=wait)
            if (spool / _STORE).exists() or run_files(spool):
                return Claim(spool, lock)
            lock.release()
    except (Timeout, OSError):
        pass
    return None


def is_written(spool: Path) -> bool:
    """Returns whether the process that adds runs to `spool` is still at work."""
    try:
        if spool.is_dir():
            with FileLock(spool / _WRITER).acquire(timeout=_LOCK_SECONDS):
                pass
    except (Timeout, OSError):
        return True
    return False


def spools(journal: Path) -> list[Path]:
    """Returns the spools of a journal, the oldest first. Removes those that a killed process left unfinished."""
    try:
        folders = sorted(path for path in journal.iterdir() if path.is_dir())
    except OSError:
        return []
    for path in folders:
        with suppress(OSError):
            if path.name.startswith(_NEW) and time.time() - path.stat().st_mtime > _NEW_SECONDS:
                shutil.rmtree(path)
    return [path for path in folders if not path.name.startswith(_NEW)]


def run_files(spool: Path) -> list[Path]:
    """Returns the files of the runs in a spool, in the order in which they began."""
    try:
        return sorted(path for path in spool.iterdir() if path.suffix == _RUN)
    except OSError:
        return []


def read_events(file: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int, int]:
    """Returns the events in a run's file from `offset` on, the offset of the next, and how many lines are damaged.

    A torn line at the end is no line yet. After a loss of power a file may hold zeros, or anything else.
    """
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    whole = data[: data.rfind(b"\n") + 1]
    events = [_event(line) for line in whole.split(b"\n") if line]
    read = [event for event in events if event is not None]
    return read, offset + len(whole), len(events) - len(read)


def _event(line: bytes) -> dict[str, Any] | None:
    """Returns the event in a line; None where it is damaged."""
    try:
        event = json.loads(line)
        return event if _is_event(event) else None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None


def _is_event(event: dict[str, Any]) -> bool:
    """Returns whether each part of an event is of its kind. May raise where it is not."""
    if "begin" in event:
        begin = event["begin"]
        texts = isinstance(begin["id"], str) and "'" not in begin["id"] and isinstance(begin["name"], str)
        if not (texts and isinstance(begin["again"], bool) and isinstance(begin["time"], int)):
            return False
    maps = all(isinstance(event.get(name, {}), dict) for name in ("params", "tags", "texts", "files"))
    metrics = (
        isinstance(key, str) and isinstance(value, int | float) and isinstance(step, int)
        for key, value, step in event.get("metrics", ())
    )
    media = (
        isinstance(each["path"], str) and isinstance(each["sha256"], str) and isinstance(each["step"], int)
        for each in event.get("media", ())
    )
    return (
        (isinstance(event.get("time"), int) or not ("metrics" in event or "end" in event))
        and maps
        and all(metrics)
        and all(media)
        and all(isinstance(text, str) and "/" not in name for name, text in event.get("texts", {}).items())
        and all(isinstance(paths, list) for paths in event.get("files", {}).values())
        and isinstance(event.get("weights"), dict | None)
        and isinstance(event.get("end", ""), str)
    )


def store_values(spool: Path) -> dict[str, Any]:
    """Returns the values of a spool's store as they are on disk; none where they cannot be read."""
    try:
        values = json.loads((spool / _STORE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def destination(spool: Path, configured: Store | None = None) -> Store | None:
    """Returns the store of a spool's runs; None where it needs a password that `configured` does not have either.

    Raises OSError or ValueError where the spool does not say which store it is.
    """
    values = json.loads((spool / _STORE).read_text(encoding="utf-8"))
    try:
        values = repoint_store(values, spool.parent)
        if values.pop("secret"):  # a password is not kept in the journal
            if configured is None or configured.public_uri != values["uri"]:
                return None
            values["uri"] = configured.uri
        store = Store.from_json({**values, "journal": str(spool.parent)})
        if configured is not None and configured.uri == store.uri:
            store = replace(store, uri_origin=configured.uri_origin)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{spool / _STORE} is damaged") from None
    if not isinstance(store.uri, str) or not isinstance(store.experiment, str | None):
        raise ValueError(f"{spool / _STORE} is damaged")
    return store


def _write_store(spool: Path, store: Store) -> None:
    values = store.as_json() | {"uri": store.public_uri, "secret": store.public_uri != store.uri}
    del values["journal"]
    for name in ("is_experiment_given", "uri_origin"):  # of this command
        values.pop(name, None)
    with (spool / _STORE).open("w", encoding="utf-8") as file:
        file.write(json.dumps(values))
        file.flush()
        os.fsync(file.fileno())


def _create(folder: Path) -> None:
    """Creates a folder below the journal, which another process removes with the last run in it."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return
        except FileNotFoundError:
            if not left:
                raise


def _remove(spool: Path) -> None:
    for name in (_STORE, _DELIVERY, _WRITER):
        with suppress(OSError):
            (spool / name).unlink()
    with suppress(OSError):
        spool.rmdir()
