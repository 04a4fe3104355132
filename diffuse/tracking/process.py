"""The worker process of diffuse.tracking.worker, seen from the process that makes pictures.

A process has one of them for all trackers that it opens one after the other, because MLflow takes longer to import than
a small picture takes to make.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from diffuse.tracking.store import Store

STALL_SECONDS = 120  # `close` waits no longer than this for something to happen
_COMPUTING = 0.01  # of a processor: who uses more is not stalled, but slow beside other work
# Only the package itself is imported from where this process found it.
_START = """\
import sys
sys.path.insert(0, sys.argv[1])
import diffuse
del sys.path[0]
from diffuse.tracking.worker import main
main()
"""


class WorkerProcess:
    """A worker process. No method but `close` waits, and none raises."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._is_woken = False
        self._message_time = time.monotonic()
        self._run_ids: dict[str, str] = {}
        self._closed: dict[str, list[str]] = {}
        self._changed = threading.Condition()
        self._open: set[str] = set()
        self._inodes: dict[Path, int] = {}  # of the SQLite files that it has open
        self._process: subprocess.Popen[str] | None = None
        self._fault = "could not be started"
        with suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(Path(__file__).resolve().parents[2])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C, and a kill of this process's group, leave it time to deliver
            )
            threading.Thread(target=self._listen, name="diffuse-tracking", daemon=True).start()

    def is_usable(self) -> bool:
        """Returns whether it lives, and belongs to this process and not to the one that this was forked from."""
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    def has_old_file(self, store: Store) -> bool:
        """Returns whether the file of an SQLite store was replaced since: MLflow has the old one open for good."""
        inode = self._inodes.get(store.file) if store.file else None
        return inode is not None and inode != _inode(store)

    @property
    def pid(self) -> int | None:
        """Its process id; None where it could not be started."""
        return self._process.pid if self._process else None

    def open_store(self, store: Store) -> None:
        """Has it open a store that will be used soon."""
        self._note(store)
        self._send({"store": store.as_json()})

    def open_spool(self, spool: Path, store: Store) -> None:
        """Has it deliver to `store` what comes into `spool`."""
        self._open.add(str(spool))
        self._send({"open": str(spool), "store": store.as_json()})

    def wake(self) -> None:
        """Has it look for something to deliver. Sent once until it answers, so that the pipe is never full."""
        if not self._is_woken:
            self._is_woken = True
            self._send({"wake": True})

    def run_id(self, name: str) -> str | None:
        """Returns MLflow's id of the run of that name in the journal, once it is in the store."""
        return self._run_ids.get(name)

    def close(self, spool: Path, store: Store) -> list[str]:
        """Waits until all of `spool` is delivered, or cannot be, and returns a line for each thing that went wrong."""
        name = str(spool)
        stall = Stall(STALL_SECONDS)
        self._message_time = time.monotonic()
        self._send({"close": name})
        with self._changed:
            while name not in self._closed:
                if not self.is_usable():
                    return [f"the process that delivers to MLflow {self._fault}"]
                if stall.has_come(time.monotonic(), self._message_time, self._processor_seconds()):
                    return [f"the store did nothing for {STALL_SECONDS} s"]
                self._changed.wait(timeout=0.5)
            self._open.discard(name)
            self._note(store)
            return self._closed.pop(name)

    def leave(self) -> None:
        """Ends it if it has nothing to do; otherwise it ends when it is done."""
        if self._process is not None and self._owner == os.getpid() and not self._open:
            self._process.kill()

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):  # it is gone, which `close` reports
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()

    def _processor_seconds(self) -> float:
        """Returns the processor time that it has used."""
        with suppress(psutil.Error):
            times = psutil.Process(self.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def _note(self, store: Store) -> None:
        if store.file and (inode := _inode(store)) is not None:
            self._inodes[store.file] = inode

    def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                self._message_time, self._is_woken = time.monotonic(), False
                if "run" in message:
                    self._run_ids[message["run"]] = message["run_id"]
                elif "closed" in message:
                    self._closed[message["closed"]] = message["warnings"]
                    self._changed.notify_all()
        with self._changed:
            self._fault = "ended by itself"
            self._changed.notify_all()


class Stall:
    """Tells when a process has neither said nor computed anything for `limit` seconds.

    One that computes slowly, since the machine is busy, goes on; one that waits for a server that is silent does not.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: float | None = None
        self._used = 0.0

    def has_come(self, now: float, message_time: float, used: float) -> bool:
        """Returns whether it has; `used` is the processor time of the process, all are in seconds."""
        if self._since is None or used - self._used >= self._limit * _COMPUTING:
            self._since, self._used = now, used
        return now - max(self._since, message_time) > self._limit


def _inode(store: Store) -> int | None:
    with suppress(OSError):
        return store.file.stat().st_ino if store.file else None
    return None


_worker: WorkerProcess | None = None


def worker(store: Store) -> WorkerProcess:
    """Returns this process's worker for `store`, which is started where there is none yet."""
    global _worker
    if _worker is None or not _worker.is_usable() or _worker.has_old_file(store):
        _worker = WorkerProcess()
        atexit.register(_worker.leave)
    return _worker
