"""Workers that are processes on this machine, started by joblib's loky: one for each card, or for some of the cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from diffuse import hardware
from diffuse.launchers.require import require
from diffuse.launchers.spread import Pool, Spread
from diffuse.launchers.work import Done, Sweep, Task, work
from diffuse.request import Device

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class JoblibLauncher(Spread):
    """`hydra/launcher=joblib`. `n_jobs` workers; where it is null, one a card, or one a core where there is none."""

    def setup(self, **told: Any) -> None:
        super().setup(**told)
        require("joblib", extra="joblib", wanted="hydra/launcher=joblib")

        accelerated = self.config.hardware.device in (Device.auto, Device.cuda)
        self.cards = [card.uuid for card in hardware.visible_gpus()] if accelerated else []
        self.workers = self.settings["n_jobs"] or len(self.cards) or _CORES

    @property
    def threads(self) -> int:
        return max(1, _CORES // self.workers)

    def open_pool(self, sweep: Sweep) -> Pool:
        return Processes(sweep, [shared_out(self.cards, worker) for worker in range(self.workers)])


def shared_out(cards: Sequence[str], worker: int) -> dict[str, str]:
    """The environment of a worker, which shows it one of the cards, given by UUID: numbers of CUDA's are not NVML's."""
    return {"CUDA_VISIBLE_DEVICES": cards[worker % len(cards)]} if cards else {}


class Processes(Pool):
    """Each worker has an executor of its own: loky ends all of an executor's processes when one of them dies."""

    def __init__(self, sweep: Sweep, environments: Sequence[Mapping[str, str]]) -> None:
        self.sweep = sweep
        self.environments = environments
        self.executors: list[Any] = [None] * len(environments)
        self.running: dict[Future[Done], tuple[int, Task]] = {}

    @property
    def size(self) -> int:
        return len(self.environments)

    def give(self, tasks: deque[Task]) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        busy = {worker for worker, _ in self.running.values()}
        for worker in range(self.size):
            if not tasks or worker in busy:
                continue
            if self.executors[worker] is None:
                self.executors[worker] = ProcessPoolExecutor(max_workers=1, env=self.environments[worker])
            task = tasks.popleft()
            self.running[self.executors[worker].submit(work, self.sweep, task)] = worker, task

    def wait(self) -> list[tuple[Task, Done | str]]:
        ended: list[tuple[Task, Done | str]] = []
        for future in wait(self.running, return_when=FIRST_COMPLETED).done:
            worker, task = self.running.pop(future)
            error = future.exception()
            if error is None:
                ended.append((task, future.result()))
            else:
                self._end(worker)
                ended.append((task, " ".join(str(error).split())))
        return ended

    def close(self) -> None:
        for worker in range(self.size):
            self._end(worker)

    def _end(self, worker: int) -> None:
        if self.executors[worker] is not None:
            self.executors[worker].shutdown(wait=True, kill_workers=True)
        self.executors[worker] = None
