"""Ctrl-C, and the signals that end like the first one: SIGTERM, and SIGHUP of a terminal that is closed.

During a sweep the first Ctrl-C ends the work after the current step, the second ends the process at once. SIGTERM and
SIGHUP are always a first one: both the system and the shell send SIGHUP to the command in a terminal that is closed.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

STATUS = 130  # as shells have it for SIGINT
_STDERR = 2
# Not there on every system.
_alarm = getattr(signal, "SIGALRM", None)
_IMPORT_CHECK = 0.02  # seconds until it is seen again whether an import has ended
STOP_SIGNALS = tuple(number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)


@contextmanager
def stop_signals_as_ctrl_c() -> Iterator[None]:
    """Raises KeyboardInterrupt for each Ctrl-C, and for the first SIGTERM or SIGHUP in the block.

    Further ones of those change nothing. What the caller has the command ignore, as nohup does with SIGHUP, stays
    ignored. One that comes during an import is raised when that has ended: half-imported libraries answer it with
    endless recursion, or end the process. Only the main thread of a program gets signals; elsewhere nothing changes.
    """
    received: list[int] = []
    waiting: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            leave_lost_terminal()
            received.append(number)
            if len(received) > 1:
                return
        waiting.append(number)
        raise_after_import(number, frame)

    def raise_after_import(number: int, frame: FrameType | None) -> None:
        if not waiting:
            return
        if _alarm is not None and _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _IMPORT_CHECK)
            return
        waiting.clear()
        raise KeyboardInterrupt

    alarm = () if _alarm is None else (_alarm,)
    ctrl_c = () if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else (signal.SIGINT,)
    with _handled(alarm, raise_after_import), _handled((*ctrl_c, *STOP_SIGNALS), handler):
        try:
            yield
        finally:
            if waiting and _alarm is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Sets the handler of those signals in the block that are not ignored, but for Ctrl-C, which never is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if previous[number] != signal.SIG_IGN or number == signal.SIGINT]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


def leave_lost_terminal() -> None:
    """Sends to nowhere what goes to a terminal that is closed: writing there fails, and would hide the true error."""
    nowhere = os.stat(os.devnull).st_rdev
    for stream in (1, _STDERR):
        with suppress(OSError):
            status = os.fstat(stream)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev != nowhere and not os.isatty(stream):
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, stream)
                os.close(descriptor)


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
        """Handles Ctrl-C, SIGTERM and SIGHUP in the block: the first calls `callbacks`, prints `message` and requests
        the stop.

        Only the main thread of a program gets signals; elsewhere nothing changes.
        """

        def handler(number: int, frame: FrameType | None) -> None:
            leave_lost_terminal()
            if self.requested:
                if number != signal.SIGINT:
                    return
                for callback in self.on_exit:
                    with suppress(Exception):
                        callback()
                os._exit(STATUS)  # unfinished files stay behind, as after kill -9
            self.requested = True
            for callback in callbacks:
                callback()
            # Not through Python's stream, which the signal may have interrupted in the middle of a write.
            with suppress(OSError):
                os.write(_STDERR, f"\n{message}\n".encode())

        with _handled((signal.SIGINT, *STOP_SIGNALS), handler):
            yield


@contextmanager
def stop_signals_kept() -> Iterator[None]:
    """Sets the handlers after the block as they were before: a library may have set its own."""
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """Ignores the signals that are for the command that this process works for, but for those that have a handler."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # the workers' library may have use for it
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Blocks Ctrl-C and SIGHUP in the block: processes started there never get them, and this one gets them afterwards.

    A terminal sends them to all processes of a command; workers are stopped by their sweep instead.
    """
    if sys.platform == "win32":
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
