"""A lock whose threads take turns, and which a forked child finds free."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class TurnLock:
    """A lock that its thread may take again, as `threading.RLock`, but which goes to the next thread that waits.

    A thread that takes an RLock again and again leaves it to no other. A fork waits for the lock like a thread: in the
    child there is only the forking thread, and nobody else could give it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held by the thread that has the lock next
        self._owner: int | None = None
        self._depth = 0
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(
                before=self.acquire, after_in_parent=self.release, after_in_child=self._release_in_child
            )

    def acquire(self) -> None:
        """Waits for the lock."""
        if self._owner != threading.get_ident():
            with self._turn:
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def release(self) -> None:
        """Gives the lock back, once for each time that it was taken."""
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._lock.release()

    def _release_in_child(self) -> None:
        self._turn = threading.Lock()  # the thread that had it does not exist here
        self.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
