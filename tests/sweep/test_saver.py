"""The threads that save: all is done when they have been waited for, and none is left."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
from command import until
from processes import LIMIT

from diffuse.sweep.saver import Saver


def test_everything_is_done_after_waiting_and_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    saver, done = Saver(), []
    assert set(threading.enumerate()) == before  # one that never saves has none to leave behind
    for number in range(50):
        saver.submit(lambda number=number: (time.sleep(0.001), done.append(number)))  # type: ignore[misc]
    saver.wait()
    assert sorted(done) == list(range(50))
    saver.close()
    assert not set(threading.enumerate()) - before
    saver.wait()  # of what was closed: nothing is left to wait for


def test_no_more_wait_than_there_is_memory_for() -> None:
    saver, gate, begun, queued = Saver(), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        gate.wait()

    def fill() -> None:
        for number in range(1000):
            saver.submit(work)
            queued.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    assert begun.wait(LIMIT)
    until(lambda: len(queued) >= 32)  # as many as are to wait in memory
    blocked = len(queued)
    gate.set()
    thread.join()
    saver.wait()
    saver.close()
    assert 32 <= blocked <= 32 + 3 and len(queued) == 1000


def test_a_function_that_raises_ends_no_thread() -> None:
    saver, done = Saver(), []
    for number in range(200):  # more than wait in memory
        saver.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        saver.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    saver.wait()
    saver.close()
    assert sorted(done) == list(range(200))
    assert [type(error) for error in saver.errors] == [ZeroDivisionError] * 200


def test_no_more_is_saved_at_once_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films are larger than pictures; one that is larger than the limit is saved alone."""
    monkeypatch.setattr("diffuse.sweep.saver._MAX_BYTES", 100)
    saver, lock, active, most = Saver(), threading.Lock(), set(), []

    def save(number: int) -> None:
        with lock:
            active.add(number)
            most.append(len(active))
        time.sleep(0.005)
        with lock:
            active.remove(number)

    for number in range(12):
        saver.submit(partial(save, number), 60 if number else 1000)
    saver.wait()
    saver.close()
    assert most == [1] * 12
