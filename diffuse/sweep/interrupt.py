"""Ctrl-C during a sweep: the first ends the work after the current step, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STATUS = 130  # as shells have it for SIGINT
_STDERR = 2


class Interruption:
    """A request to stop, by Ctrl-C or by whoever sets `requested`; `check` raises where the work can stop."""

    def __init__(self) -> None:
        self.requested = False
        self.on_exit: list[Callable[[], None]] = []  # called by the second Ctrl-C before the process ends

    def check(self, *_: object) -> None:
        """Raises KeyboardInterrupt if a stop is requested."""
        if self.requested:
            raise KeyboardInterrupt

    @contextmanager
    def handle_ctrl_c(self, message: str, *callbacks: Callable[[], None]) -> Iterator[None]:
        """Handles Ctrl-C in the block: the first calls `callbacks`, prints `message` and requests the stop.

        Only the main thread of a program gets signals; elsewhere nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(number: int, frame: FrameType | None) -> None:
            if self.requested:
                for callback in self.on_exit:
                    with suppress(Exception):
                        callback()
                os._exit(STATUS)  # unfinished files stay behind, as after kill -9
            self.requested = True
            for callback in callbacks:
                callback()
            # Not through Python's stream, which the signal may have interrupted in the middle of a write.
            os.write(_STDERR, f"\n{message}\n".encode())

        previous = signal.signal(signal.SIGINT, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in the block: processes started there never get it, and this one gets it afterwards.

    A terminal sends Ctrl-C to all processes of a command; workers are stopped by their sweep instead.
    """
    if sys.platform == "win32":
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
