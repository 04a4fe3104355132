"""The process that delivers runs, beside the one that makes pictures.

It is a process of its own because MLflow is Python, and so a thread would take the interpreter lock from the loop that
denoises: what the store costs would be added to every run. It outlives a `kill -9` of the other by as long as it takes
to deliver what is known.

It is told, a JSON object a line on standard input: `{"prepare": true}` for a store that is a database,
`{"open": SPOOL, "store": {...}}`, `{"wake": true}` when a run has ended, and `{"close": SPOOL}`, after which it
delivers all there is. It says on standard output `{"run": NAME, "run_id": ID}` of a run that has come to the store,
`{"working": true}` now and then, and `{"closed": SPOOL, "warnings": [...]}`.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse.tracking import failures, journal, mlflow_store
from diffuse.tracking.delivery import Deliverer, Spool, deliver_orphan
from diffuse.tracking.store import Store
from diffuse.tracking.system import System

_NICENESS = 5  # on a busy machine, the picture goes first
_GARBAGE = 100_000, 20, 100  # objects between Python's searches for cycles: MLflow's imports make many that stay
_POLL_SECONDS = 1.0  # between looks at runs that go on
_SOON_SECONDS = 2.0  # after which it is tried again in the end
_RETRY_SECONDS = 1.0, 60.0  # until a store that went away is tried again: at first, and at most

Say = Callable[[dict[str, Any]], None]


class Work:
    """The delivery of one spool of the process that this one works for."""

    def __init__(self, folder: Path, store: Store, say: Say) -> None:
        self._folder = folder
        self._say = say
        self._deliverer = Deliverer(store, lambda name, run_id: say({"run": name, "run_id": run_id}))
        self._spool: Spool | None = None
        self._wait, self._again = _RETRY_SECONDS[0], 0.0
        self._away: Exception | None = None
        self._failed = 0.0
        self._system = System()

    def step(self) -> None:
        """Delivers what is due, unless the store went away a moment ago."""
        if time.monotonic() >= self._again:
            self._attempt(everything=False)

    def close(self, *, orphaned: bool) -> list[str]:
        """Delivers all there is, that of processes which were killed included, and gives what went wrong.

        `orphaned` says that the process that this one works for is gone.
        """
        if spool := self._opened():
            spool.read()
            for run in spool.runs.values():
                run.give_up()
            if self._away is None or time.monotonic() - self._failed > _SOON_SECONDS:
                self._attempt(everything=True)
            spool.claim.release(remove=orphaned)
        if self._away is None:
            self._deliver_others()
        if self._away is not None:
            self._deliverer.warn("", self._away)
        return list(self._deliverer.warnings.values())

    def _opened(self) -> Spool | None:
        if self._spool is None and (claim := journal.claim(self._folder)):
            self._spool = Spool(claim, self._deliverer.store, foreign=False, warn=self._deliverer.warn)
        return self._spool

    def _attempt(self, *, everything: bool) -> None:
        spool = self._opened()
        if spool is None:
            return
        try:
            self._sample(spool)
            self._deliverer.deliver(spool, everything=everything)
            self._away, self._wait = None, _RETRY_SECONDS[0]
        except Exception as error:
            self._away = error
            self._failed = time.monotonic()
            self._again = self._failed + self._wait
            self._wait = min(2 * self._wait, _RETRY_SECONDS[1])

    def _sample(self, spool: Spool) -> None:
        """Adds what the machine does to the runs that are in the store and go on."""
        live = [run for run in spool.runs.values() if run.stored and not run.waiting.end]
        sample = self._system.sample() if live else {}
        now = time.time_ns() // 1_000_000
        for run in live:
            run.waiting.metrics += [(name, value, now, run.samples) for name, value in sample.items()]
            run.samples += bool(sample)

    def _deliver_others(self) -> None:
        """What waits for the same store and has nobody to deliver it any more."""
        store = self._deliverer.store
        for folder in journal.spools(store.journal):
            if folder == self._folder or journal.is_written(folder):
                continue
            try:
                other = journal.destination(folder, store)
                if other is None or other.uri != store.uri or not (claim := journal.claim(folder)):
                    continue
            except (OSError, ValueError, KeyError, TypeError):  # a damaged one, of which `diffuse sync` tells
                continue
            try:
                deliver_orphan(claim, self._deliverer, other)
            except Exception as error:
                self._away = error
                return
            finally:
                claim.release(remove=True)
            self._say({"working": True})


def serve(inbox: queue.SimpleQueue[dict[str, Any] | None], say: Say) -> None:
    """Does what the messages say, until there are no more: None."""
    works: dict[str, Work] = {}
    while True:
        messages = [_next(inbox, _POLL_SECONDS if works else None)]
        with suppress(queue.Empty):
            while messages[-1] is not None:
                messages.append(inbox.get_nowait())
        for message in messages:
            if message is None:
                for work in works.values():
                    work.close(orphaned=True)
                return
            if message.get("prepare"):
                with suppress(ImportError):  # which is told when there is something to deliver
                    mlflow_store.load_database()
            elif "open" in message:
                works[message["open"]] = Work(Path(message["open"]), Store.of_json(message["store"]), say)
            elif "close" in message:
                try:
                    warnings = works.pop(message["close"]).close(orphaned=False)
                except Exception as error:  # the journal cannot be read, for instance; others go on
                    warnings = [failures.why(error)]
                say({"closed": message["close"], "warnings": warnings})
        for work in works.values():
            work.step()


def _next(inbox: queue.SimpleQueue[dict[str, Any] | None], seconds: float | None) -> dict[str, Any] | None:
    try:
        return inbox.get(timeout=seconds)
    except queue.Empty:
        return {"wake": True}


def main() -> None:
    """Serves the process at the other end of standard input and output, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that makes pictures
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    gc.set_threshold(*_GARBAGE)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever MLflow prints is no message

    def say(message: dict[str, Any]) -> None:
        with suppress(OSError):  # nobody listens any more
            output.write(json.dumps(message) + "\n")
            output.flush()

    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            inbox.put(json.loads(line))
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    with suppress(ImportError):
        mlflow_store.load()
    serve(inbox, say)
