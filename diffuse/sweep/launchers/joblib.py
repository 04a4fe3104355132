"""Workers that are processes on this machine, started by joblib's loky: one for each card, or for each core."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import suppress
from typing import Any

from diffuse.device import gpus
from diffuse.schema import Device
from diffuse.sweep.launchers.require import require
from diffuse.sweep.launchers.spread import Pool, Spread
from diffuse.sweep.launchers.work import Done, Task, Told, leave, work

_LOOK_S = 0.5  # how often to see whether Ctrl-C was pressed
_LEAVE_S = 60  # for a worker to record what it has made


class JoblibLauncher(Spread):
    """`hydra/launcher=joblib`: `n_jobs` workers, or where it is null one a card, or one a core where there is none."""

    def require(self) -> None:
        """See `Spread`."""
        require("joblib", extra="joblib", wanted="hydra/launcher=joblib")

    @property
    def cards(self) -> list[str]:
        """By UUID: numbers of CUDA's are not NVML's."""
        accelerated = self.config.hardware.device in (Device.auto, Device.cuda)
        return [card.uuid for card in gpus.visible_gpus()] if accelerated else []

    @property
    def workers(self) -> int:
        """How many there are to be."""
        return self.settings["n_jobs"] or len(self.cards) or _cores()

    @property
    def threads(self) -> int:
        """See `Spread`."""
        return max(1, _cores() // self.workers)

    def open_pool(self, told: Told) -> Pool:
        """See `Spread`."""
        return Processes(told, [shared_out(self.cards, worker) for worker in range(self.workers)])


def shared_out(cards: Sequence[str], worker: int) -> dict[str, str]:
    """The environment of a worker, which shows it one of the cards."""
    return {"CUDA_VISIBLE_DEVICES": cards[worker % len(cards)]} if cards else {}


def _stay() -> None:
    """Has a process of loky's live as long as the one that started it, and end with it, however that ends.

    By itself it ends, with all that it has loaded, when it has grown since its first task, as one does whose next model
    is larger; and waits for ever, with its card, for one that was killed.
    """
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    threading.Thread(target=_end_with, args=(os.getppid(),), name="diffuse-parent", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes(Pool):
    """Each worker has an executor of its own: loky ends all processes of an executor when one of them dies."""

    def __init__(self, told: Told, environments: Sequence[Mapping[str, str]]) -> None:
        self.told = told
        self.environments = environments
        self.executors: list[Any] = [None] * len(environments)
        self.running: dict[Future[Done], tuple[int, Task]] = {}

    @property
    def size(self) -> int:
        """See `Pool`."""
        return len(self.environments)

    @property
    def busy(self) -> bool:
        """See `Pool`."""
        return bool(self.running)

    def give(self, tasks: deque[Task]) -> None:
        """See `Pool`."""
        busy = {worker for worker, _ in self.running.values()}
        for worker in range(self.size):
            if not tasks or worker in busy:
                continue
            task = tasks.popleft()
            self.running[self._begin(worker, task)] = worker, task

    def wait(self) -> list[tuple[Task, Done | str]]:
        """See `Pool`."""
        ended: list[tuple[Task, Done | str]] = []
        for future in wait(self.running, _LOOK_S, FIRST_COMPLETED).done:
            worker, task = self.running.pop(future)
            error = future.exception()
            if error is None:
                ended.append((task, future.result()))
            else:
                self._end(worker)
                ended.append((task, type(error).__name__))
        return ended

    def close(self) -> list[str]:
        """See `Pool`."""
        warnings: list[str] = []
        busy = {worker for worker, _ in self.running.values()}
        leaving: list[Future[list[str]]] = []
        for worker in range(self.size):
            if self.executors[worker] is not None and worker not in busy:
                with suppress(BrokenExecutor):
                    leaving.append(self.executors[worker].submit(leave, self.told))
        for left in wait(leaving, _LEAVE_S).done:
            warnings += left.result() if left.exception() is None else [f"a worker: {left.exception()}"]
        for worker in range(self.size):
            self._end(worker)
        return warnings

    def _begin(self, worker: int, task: Task) -> Future[Done]:
        """Gives a task to a worker, or to one in its place if it has died since its last."""
        from joblib.externals.loky import ProcessPoolExecutor

        if self.executors[worker] is not None:
            with suppress(BrokenExecutor):
                return self.executors[worker].submit(work, self.told, task)
            self._end(worker)
        environment = self.environments[worker]
        self.executors[worker] = ProcessPoolExecutor(max_workers=1, env=environment, initializer=_stay)
        return self.executors[worker].submit(work, self.told, task)

    def _end(self, worker: int) -> None:
        if self.executors[worker] is not None:
            self.executors[worker].shutdown(wait=True, kill_workers=True)
        self.executors[worker] = None
