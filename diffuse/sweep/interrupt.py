"""Ctrl-C during many steps: the first ends the work after the current step, the second ends the process at once."""

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
    """Whether Ctrl-C was pressed; `check` raises KeyboardInterrupt where the work can stop."""

    def __init__(self) -> None:
        self.asked = False
        self.at_once: list[Callable[[], None]] = []  # what the second Ctrl-C does before the process ends

    def check(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def watched(self, message: str, *first: Callable[[], None]) -> Iterator[None]:
        """Ctrl-C in the block prints `message`, after what is done `first`, and waits for `check`.

        Only a program's main thread hears of Ctrl-C; elsewhere nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pressed(number: int, frame: FrameType | None) -> None:
            if self.asked:
                for end in self.at_once:
                    with suppress(Exception):
                        end()
                os._exit(STATUS)  # whatever is half done is left behind as kill -9 would leave it
            self.asked = True
            for each in first:
                each()
            # Not through Python's stream, in the middle of whose work this may come.
            os.write(_STDERR, f"\n{message}\n".encode())

        before = signal.signal(signal.SIGINT, pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started in the block never hear of Ctrl-C, which a terminal sends to all of them; this one
    hears of it afterwards."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
