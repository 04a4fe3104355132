"""The worker process of diffuse.tracking.worker, as the one that makes pictures sees it.

There is one of them for a process, whatever number of trackers it opens one after the other: MLflow takes longer to
import than a small picture takes to make.
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

from diffuse.tracking.store import Store

STALL_SECONDS = 120  # `close` waits no longer than this for something to happen
# The package comes from where this process found it, and nothing else does.
_START = """\
import sys
sys.path.insert(0, sys.argv[1])
import diffuse
del sys.path[0]
from diffuse.tracking.worker import main
main()
"""


class Worker:
    """A worker process. No method but `close` waits, and none raises."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._woken = False
        self._heard = time.monotonic()
        self._run_ids: dict[str, str] = {}
        self._closed: dict[str, list[str]] = {}
        self._changed = threading.Condition()
        self._open: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._ended = "could not be started"
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
        """Whether it lives, and is this process's own and not that of the one which forked it."""
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id; None where it could not be started."""
        return self._process.pid if self._process else None

    def prepare(self, store: Store) -> None:
        """Has it import what a store of that kind needs."""
        self._send({"prepare": not store.is_server})

    def open(self, spool: Path, store: Store) -> None:
        """Has it deliver what comes into `spool`, to `store`."""
        self._open.add(str(spool))
        self._send({"open": str(spool), "store": store.as_json()})

    def wake(self) -> None:
        """There is something to deliver. Said once until it is heard, so that it never fills the pipe."""
        if not self._woken:
            self._woken = True
            self._send({"wake": True})

    def run_id(self, name: str) -> str | None:
        """The id that the store gave the run of that name in the journal, once it is there."""
        return self._run_ids.get(name)

    def close(self, spool: Path) -> list[str]:
        """Waits until all of `spool` is delivered, or cannot be, and gives a line for each thing that went wrong."""
        name = str(spool)
        self._heard = time.monotonic()
        self._send({"close": name})
        with self._changed:
            while name not in self._closed:
                if not self.is_usable():
                    return [f"the process that delivers to MLflow {self._ended}"]
                if time.monotonic() - self._heard > STALL_SECONDS:
                    return [f"the store did nothing for {STALL_SECONDS} s"]
                self._changed.wait(timeout=0.5)
            self._open.discard(name)
            return self._closed.pop(name)

    def leave(self) -> None:
        """Ends it where it has nothing to do; otherwise it ends when it is done."""
        if self._process is not None and self._owner == os.getpid() and not self._open:
            self._process.kill()

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):  # it is gone, as `close` will say
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                self._heard, self._woken = time.monotonic(), False
                if "run" in message:
                    self._run_ids[message["run"]] = message["run_id"]
                elif "closed" in message:
                    self._closed[message["closed"]] = message["warnings"]
                    self._changed.notify_all()
        with self._changed:
            self._ended = "ended by itself"
            self._changed.notify_all()


_worker: Worker | None = None


def worker() -> Worker:
    """This process's worker, which is started where there is none yet."""
    global _worker
    if _worker is None or not _worker.is_usable():
        _worker = Worker()
        atexit.register(_worker.leave)
    return _worker
