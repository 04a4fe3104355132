"""Threads that save the results of one batch while the next one is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from diffuse.device.profile import MAX_BATCH

_MAX_WAITING = 2 * MAX_BATCH  # results in memory that are not saved yet
_MAX_BYTES = 2**30  # of their frames; one film may have more
_THREADS = 3  # each waits for the disk three times a job


class Saver:
    """A small pool of threads for work that mostly waits for the disk. They begin with the first work."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []  # of functions that raised one
        self._queue: queue.Queue[tuple[Callable[[], None], int] | None] = queue.Queue(_MAX_WAITING)
        self._bytes = 0  # of what waits or is being saved
        self._saved = threading.Condition()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[], None], nbytes: int = 0) -> None:
        """Queues a function, whose result has `nbytes`. Blocks while too much waits, since results take memory."""
        if not self._threads:
            names = [f"diffuse-saving-{number}" for number in range(_THREADS)]
            self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
            for thread in self._threads:
                thread.start()
        with self._saved:
            self._saved.wait_for(lambda: not self._bytes or self._bytes + nbytes <= _MAX_BYTES)
            self._bytes += nbytes
        self._queue.put((function, nbytes))

    def wait(self) -> None:
        """Blocks until all functions have returned."""
        self._queue.join()

    def close(self) -> None:
        """Ends the threads: one that still ran at Python's exit could abort the process."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            function, nbytes = item or (None, 0)
            try:
                if function is None:
                    return
                function()
            except Exception as error:  # without its thread nothing would be saved any more
                self.errors.append(error)
            finally:
                del item, function  # which hold the result
                with self._saved:
                    self._bytes -= nbytes
                    self._saved.notify_all()
                self._queue.task_done()
