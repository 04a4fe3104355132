"""Tells what a forked process can still use of torch.

OpenMP's threads do not live on in a forked child, which would wait for them for ever; nor does a CUDA context. So the
child computes with one thread, and is refused the card.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from diffuse.errors import HardwareError

log = logging.getLogger(__name__)

_TASKS = "/proc/self/task"  # the threads of this process, on Linux
_ADVICE = "start it with multiprocessing's 'spawn' instead of 'fork'"

_used_threads = False  # by a process that this one was forked from
_used_cuda = False
_computed = False  # with more than one thread, by this process
_at_fork: tuple[bool, bool] = (False, False)  # what of the two a child that is forked now begins with


def allowed_threads(threads: int | None) -> int | None:
    """Returns the number of threads to compute with, None for torch's own choice.

    Raises:
        HardwareError: `threads` is more than one, and this process was forked from one that had used torch's threads.
    """
    if not _used_threads:
        return threads
    why = "this process was forked from one that had used torch's threads, and has one alone"
    if threads is None:
        log.warning("computing with one thread: %s; to have them all, %s", why, _ADVICE)
    elif threads > 1:
        raise HardwareError(f"hardware.threads={threads}: {why}; take 1, or {_ADVICE}")
    return 1


def check_cuda() -> None:
    """Raises `HardwareError` where this process was forked from one that had used CUDA."""
    if _used_cuda:
        raise HardwareError(
            f"hardware=cuda: this process was forked from one that had used CUDA; {_ADVICE}, or use hardware=cpu"
        )


def note_threads(threads: int) -> None:
    """Notes that this process computes with `threads` of torch's."""
    global _computed
    _computed = _computed or threads > 1


def _note_use() -> None:
    """Notes, before a fork, what the child will not be able to use. The parent keeps its threads and its card."""
    global _at_fork
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):  # it is still being imported
        _at_fork = _used_threads, _used_cuda
        return
    threads = _used_threads or _computed or (torch.get_num_threads() > 1 and _has_more_threads())
    _at_fork = threads, _used_cuda or torch.cuda.is_initialized()


def _inherit_use() -> None:
    """Takes over, in the child, what was noted before the fork."""
    global _used_threads, _used_cuda
    _used_threads, _used_cuda = _at_fork


def _has_more_threads() -> bool:
    """Tells whether there are more threads than Python and NumPy's OpenBLAS have started, whose own are safe.

    That is how the use of torch by other code shows. True where the number cannot be known.
    """
    try:
        return len(os.listdir(_TASKS)) > threading.active_count() + _threads_of_openblas()
    except OSError:
        return True


def _threads_of_openblas() -> int:
    """Returns how many threads OpenBLAS starts as NumPy is imported: one less than it computes with."""
    if "numpy" not in sys.modules:
        return 0
    settings = (os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"))
    cores = len(os.sched_getaffinity(0))
    return min(cores, next((int(each) for each in settings if each.isdigit() and int(each)), cores)) - 1


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_note_use, after_in_child=_inherit_use)
