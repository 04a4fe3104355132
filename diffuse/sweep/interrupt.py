"""Ctrl-C, and the signals that end like the first one: SIGTERM, and SIGHUP of a terminal that is closed.

During a sweep the first Ctrl-C ends the work after the current step, the second ends the process at once. SIGTERM and
SIGHUP are always a first one: both the system and the shell send SIGHUP to the command in a terminal that is closed.
"""

from __future__ import annotations

import inspect
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
_IMPORT_CHECK = 0.02  # seconds until it is seen again whether an import has ended
# Not there on every system.
STOP_SIGNALS = tuple(number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)


@contextmanager
def stop_signals_as_ctrl_c() -> Iterator[None]:
    """Raises KeyboardInterrupt for each Ctrl-C, and for the first SIGTERM or SIGHUP in the block.

    Further ones of those change nothing. What the caller has the command ignore, as nohup does with SIGHUP, stays
    ignored. One that comes during an import is raised when that has ended: half-imported libraries answer it with
    endless recursion, or end the process. A second one meanwhile ends the process at once. Only the main thread of a
    program gets signals; elsewhere nothing changes.
    """
    stops: list[int] = []
    waiting: list[threading.Timer] = []  # the one that sends the signal again, while an import goes on
    sent_again: list[int] = []
    thread = threading.get_ident()
    generator = inspect.currentframe()
    assert generator is not None and generator.f_back is not None
    block = generator.f_back.f_back  # whoever has the block: an import that goes on around it has no end within

    def send_again(number: int) -> None:
        sent_again.append(number)
        if sys.platform == "win32":
            signal.raise_signal(number)
        else:  # to the main thread, which may sleep
            signal.pthread_kill(thread, number)

    def handler(number: int, frame: FrameType | None) -> None:
        is_new = not sent_again
        sent_again.clear()
        if is_new and number != signal.SIGINT:
            leave_lost_terminal()
            stops.append(number)
        if is_new and waiting:
            with suppress(OSError):
                os.write(_STDERR, b"\ndiffuse: interrupted\n")
            os._exit(STATUS)
        if (is_new and number != signal.SIGINT and len(stops) > 1) or not (is_new or waiting):
            return
        waiting.clear()
        if not _is_importing(frame, block):
            raise KeyboardInterrupt
        timer = threading.Timer(_IMPORT_CHECK, send_again, (number,))
        timer.daemon = True
        waiting.append(timer)
        timer.start()

    ctrl_c = () if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else (signal.SIGINT,)
    with _handled((*ctrl_c, *STOP_SIGNALS), handler):
        try:
            yield
        finally:
            late = waiting.copy()
            waiting.clear()
            for timer in late:
                timer.cancel()
                timer.join()
        if late:
            raise KeyboardInterrupt


def _is_importing(frame: FrameType | None, block: FrameType | None) -> bool:
    """Tells whether an import goes on in `frame` that has begun in a block."""
    while frame is not None and frame is not block:
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
