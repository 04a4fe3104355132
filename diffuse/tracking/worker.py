"""The main program of the process that delivers runs, beside the one that makes pictures.

It is a process of its own because MLflow is Python, and a thread would take the interpreter lock from the loop that
denoises. It survives a `kill -9` of the other process for as long as it takes to deliver what is in the journal.

Messages on standard input, a JSON object a line: `{"store": {...}}` for a store that will be used soon,
`{"open": SPOOL, "store": {...}}`, `{"wake": true}` when a run has ended, and `{"close": SPOOL}`, after which it
delivers everything. Messages on standard output: `{"run": NAME, "run_id": ID}` for a run that is in the store,
`{"working": true}` as a sign of life, and `{"closed": SPOOL, "warnings": [...]}`.
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
from diffuse.tracking.delivery import Deliverer, SpoolDelivery, deliver_orphan
from diffuse.tracking.mlflow_store import UnusableExperiment
from diffuse.tracking.store import Store
from diffuse.tracking.system import SystemMetrics

_NICENESS = 5  # on a busy machine, the picture goes first
_GARBAGE = 100_000, 20, 100  # objects between Python's searches for cycles: MLflow's imports make many that stay
_POLL_SECONDS = 1.0  # between looks at runs that go on
_SOON_SECONDS = 2.0  # after a failure, before the last attempt
_RETRY_SECONDS = 1.0, 60.0  # between attempts while the store is unavailable: first, and at most

Send = Callable[[dict[str, Any]], None]


class SpoolWorker:
    """The delivery of one spool of the process that this one works for."""

    def __init__(self, folder: Path, store: Store, send: Send) -> None:
        self._folder = folder
        self._send = send
        self._deliverer = Deliverer(store, lambda name, run_id: send({"run": name, "run_id": run_id}))
        self._spool: SpoolDelivery | None = None
        self._delay, self._next_attempt = _RETRY_SECONDS[0], 0.0
        self._error: Exception | None = None  # of the last attempt
        self._error_time = 0.0
        self._system = SystemMetrics()

    def step(self) -> None:
        """Delivers what is due, unless the store failed a moment ago."""
        if time.monotonic() >= self._next_attempt:
            self._attempt(everything=False)

    def close(self, *, orphaned: bool) -> list[str]:
        """Delivers everything, also what killed processes left, and returns a line for each thing that went wrong.

        Args:
            orphaned: the process that this one works for is gone.
        """
        if spool := self._open_spool():
            spool.read()
            for run in spool.runs.values():
                run.abandon()
            if self._error is None or time.monotonic() - self._error_time > _SOON_SECONDS:
                self._attempt(everything=True)
            spool.claim.release(remove=orphaned)
        if self._error is not None:
            self._deliverer.warn("", self._error)
        if self._error is None or isinstance(self._error, UnusableExperiment):  # which says nothing of other runs
            self._deliver_others()
        return self._deliverer.take_warnings()

    def _open_spool(self) -> SpoolDelivery | None:
        if self._spool is None and (claim := journal.claim(self._folder)):
            self._spool = SpoolDelivery(claim, self._deliverer.store, orphaned=False, warn=self._deliverer.warn)
        return self._spool

    def _attempt(self, *, everything: bool) -> None:
        spool = self._open_spool()
        if spool is None:
            return
        try:
            self._add_system_metrics(spool)
            self._deliverer.deliver(spool, everything=everything)
            self._error, self._delay = None, _RETRY_SECONDS[0]
        except Exception as error:
            self._error = error
            self._error_time = time.monotonic()
            self._next_attempt = self._error_time + self._delay
            self._delay = min(2 * self._delay, _RETRY_SECONDS[1])

    def _add_system_metrics(self, spool: SpoolDelivery) -> None:
        """Adds a sample to the runs that are in the store and go on."""
        runs = [run for run in spool.runs.values() if run.stored and not run.data.end]
        sample = self._system.sample() if runs else {}
        now = time.time_ns() // 1_000_000
        for run in runs:
            run.data.metrics += [(name, value, now, run.sample_count) for name, value in sample.items()]
            run.sample_count += bool(sample)

    def _deliver_others(self) -> None:
        """Delivers what waits for the same store and has no process any more."""
        store = self._deliverer.store
        for folder in journal.spools(store.journal):
            if folder == self._folder or journal.is_written(folder):
                continue
            try:
                other = journal.destination(folder, store)
                if other is None or other.uri != store.uri or not (claim := journal.claim(folder)):
                    continue
            except (OSError, ValueError):  # a damaged one; `diffuse sync` warns of it
                continue
            try:
                deliver_orphan(claim, self._deliverer, other, store if store.is_experiment_given else None)
            except UnusableExperiment as error:
                self._deliverer.warn("runs of an earlier command wait: ", error)
            except Exception as error:
                self._deliverer.warn("", error)
                return
            finally:
                claim.release(remove=True)
            self._send({"working": True})


def handle_messages(inbox: queue.SimpleQueue[dict[str, Any] | None], send: Send) -> None:
    """Delivers as the messages say, until there are no more: None."""
    spools: dict[str, SpoolWorker] = {}
    while True:
        messages = [_next_message(inbox, _POLL_SECONDS if spools else None)]
        with suppress(queue.Empty):
            while messages[-1] is not None:
                messages.append(inbox.get_nowait())
        for message in messages:
            if message is None:
                for spool in spools.values():
                    spool.close(orphaned=True)
                return
            if "open" in message:
                spools[message["open"]] = SpoolWorker(Path(message["open"]), Store.from_json(message["store"]), send)
            elif "store" in message:
                _warm_up(Store.from_json(message["store"]))
            elif "close" in message:
                try:
                    warnings = spools.pop(message["close"]).close(orphaned=False)
                except Exception as error:  # the journal cannot be read, for instance; other spools go on
                    warnings = [failures.error_line(error)]
                send({"closed": message["close"], "warnings": warnings})
        for spool in spools.values():
            spool.step()


def _warm_up(store: Store) -> None:
    """Opens a store that is there, so that MLflow has imported what it needs. The first run shows what is wrong."""
    with suppress(Exception):
        if store.file is None or store.file.exists():
            mlflow_store.open_store(store)


def _next_message(inbox: queue.SimpleQueue[dict[str, Any] | None], seconds: float | None) -> dict[str, Any] | None:
    try:
        return inbox.get(timeout=seconds)
    except queue.Empty:
        return {"wake": True}


def main() -> None:
    """Works for the process at the other end of standard input and output, until that ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # are for the one that makes pictures, and tells when it ends
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    gc.set_threshold(*_GARBAGE)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever MLflow prints is no message

    def send(message: dict[str, Any]) -> None:
        with suppress(OSError):  # the other process is gone
            output.write(json.dumps(message) + "\n")
            output.flush()

    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            inbox.put(json.loads(line))
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    with suppress(ImportError):  # the first run shows it
        mlflow_store.import_mlflow()
    handle_messages(inbox, send)
