"""A weights file that is cut while a step reads it ends the process in a line, where the system would with SIGBUS.

No Python runs where a mapped page is missing: the instruction faults again and again. But at each fault Python's own
handler writes the signal's number to the wakeup descriptor. A thread waits for that, while torch's operators, which
release the interpreter lock, are stuck. It finds the file that has become shorter, reports it, and ends the process.

A bus error that is no cut file's ends the process as it did before. So do those that come while the interpreter lock is
held, which is so for code that torch has compiled for the CPU: there nothing is watched. Between the steps
`tensor_reading.check_mapped_files` says the same without an end of the process.

Only the command, and the workers of a sweep, handle the signal. A program that calls diffuse from Python keeps its
signal handlers and its wakeup descriptor as they are.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.media.files import remove_unfinished

_SIGBUS: Any = getattr(signal, "SIGBUS", None)  # not there on every system

Report = Callable[[CheckpointError], None]
_reports: list[Report] = []  # of this process, if it is ours
_checks: list[Callable[[], None]] = []  # of what is computed now
_callbacks: list[Callable[[CheckpointError], object]] = []
_nowhere: list[int] = []  # where faulthandler writes meanwhile
_pipes: list[int] = []  # the end that is written to, once there is a thread at the other


def report_cut_files(report: Report) -> None:
    """Has `watch_cut_files` watch in this process, which is no other program's. `report` prints an error's line."""
    _reports[:] = [report]


def leave_cut_files() -> None:
    """Has `watch_cut_files` do nothing any more, for whoever runs the command inside another program."""
    _reports.clear()


@contextmanager
def watch_cut_files(check: Callable[[], None], on_cut: Callable[[CheckpointError], object] | None) -> Iterator[None]:
    """Ends the process in the block with a line and the error's status where a mapped file is cut.

    It does nothing where the process has not called `report_cut_files`, outside the main thread, and where somebody
    else handles bus errors (Python's faulthandler is one) or has a wakeup descriptor.

    Args:
        check: raises CheckpointError if a file that is mapped has been cut.
        on_cut: called before the process ends, in another thread, to record why.
    """
    if not _enter():
        yield
        return
    _checks[:] = [check]
    _callbacks[:] = [] if on_cut is None else [on_cut]
    try:
        yield
    finally:
        _leave()
        _checks.clear()
        _callbacks.clear()


def _enter() -> bool:
    """Handles SIGBUS, and returns whether it could be."""
    if _SIGBUS is None or not _reports or threading.current_thread() is not threading.main_thread():
        return False
    if faulthandler.is_enabled() or signal.getsignal(_SIGBUS) != signal.SIG_DFL:
        return False
    if not _pipes:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        _pipes.append(write_end)
        threading.Thread(target=_wait, args=(read_end,), name="diffuse-bus-errors", daemon=True).start()
    other = signal.set_wakeup_fd(_pipes[0], warn_on_full_buffer=False)
    if other != -1:
        signal.set_wakeup_fd(other, warn_on_full_buffer=False)
        return False
    # A thread cannot set a signal's handler, but faulthandler.disable() gives back the one that was there before.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    faulthandler.enable(file=nowhere)
    _nowhere.append(nowhere)
    signal.signal(_SIGBUS, _stay)
    return True


def _leave() -> None:
    signal.set_wakeup_fd(-1)
    assert _SIGBUS is not None
    signal.signal(_SIGBUS, signal.SIG_DFL)
    faulthandler.disable()
    while _nowhere:
        os.close(_nowhere.pop())


def _stay(*_: Any) -> None:
    """Does nothing: what is to be done, the thread does."""


def _wait(read_end: int) -> None:
    while True:
        if _SIGBUS in os.read(read_end, 4096):
            _end()


def _end() -> None:
    """Ends the process: in a line if a file was cut, otherwise by the signal."""
    assert _SIGBUS is not None
    try:
        for check in _checks:
            check()
    except CheckpointError as error:
        for call in (*_callbacks, lambda _: remove_unfinished(), *_reports, lambda _: sys.stdout.flush()):
            with suppress(Exception):
                call(error)
        os._exit(error.exit_status)
    faulthandler.disable()
    os.kill(os.getpid(), _SIGBUS)


def _forget_in_child() -> None:
    """Leaves the parent's pipe alone, in a process that was forked while the signal was handled."""
    _pipes.clear()
    if _nowhere:
        with suppress(ValueError):
            _leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
