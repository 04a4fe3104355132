"""Workers that are processes on this machine, started by joblib's loky: one for each GPU, or for each core."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import suppress
from typing import Any

from diffuse.device import gpus
from diffuse.schema import Device
from diffuse.sweep.launchers.pool import CLOSE_S, POLL_S, Pool, PoolLauncher, WorkerDied
from diffuse.sweep.launchers.worker import SweepContext, Task, TaskResult, leave_sweep, run_task


class JoblibLauncher(PoolLauncher):
    """`hydra/launcher=joblib`: `n_jobs` workers; where it is null one for each GPU, or for each core without a GPU."""

    option = package = extra = "joblib"

    @property
    def gpus(self) -> list[str]:
        """The UUIDs of the GPUs; CUDA and NVML number them differently."""
        uses_gpu = self.config.hardware.device in (Device.auto, Device.cuda)
        return [gpu.uuid for gpu in gpus.visible_gpus()] if uses_gpu else []

    @property
    def workers(self) -> int:
        """The number of workers."""
        return self.settings["n_jobs"] or len(self.gpus) or _cores()

    @property
    def threads(self) -> int:
        """See `PoolLauncher`."""
        return max(1, _cores() // self.workers)

    def open_pool(self, context: SweepContext) -> Pool:
        """See `PoolLauncher`."""
        gpus = self.gpus
        environments = [
            {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {} for worker in range(self.workers)
        ]
        return ProcessPool(context, environments)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _initialize() -> None:
    """Makes a process of loky's live exactly as long as its parent.

    By default it ends, with its models, when it has grown by 300 MB since its first task, as it does with the next
    larger model. And it would wait for ever, with its GPU, for a parent that was killed.
    """
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize  # private: see docs/private-interfaces.md
    threading.Thread(target=_exit_with, args=(os.getppid(),), name="diffuse-parent", daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


class ProcessPool(Pool):
    """One executor for each worker: loky ends all processes of an executor when one of them dies."""

    def __init__(self, context: SweepContext, environments: Sequence[Mapping[str, str]]) -> None:
        super().__init__()
        self.context = context
        self.environments = environments
        self.executors: list[Any] = [None] * len(environments)
        self.workers: dict[Future[TaskResult], int] = {}  # of running tasks

    @property
    def size(self) -> int:
        """See `Pool`."""
        return len(self.environments)

    @property
    def free(self) -> list[int]:
        """The workers without a task."""
        return [worker for worker in range(self.size) if worker not in self.workers.values()]

    def submit(self, tasks: deque[Task]) -> None:
        """See `Pool`."""
        for worker in self.free[: len(tasks)]:
            task = tasks.popleft()
            future = self._start(worker, task)
            self.running[future], self.workers[future] = task, worker

    def poll(self) -> Iterable[Future[TaskResult]]:
        """See `Pool`."""
        return wait(self.running, POLL_S, FIRST_COMPLETED).done

    def result(self, handle: Future[TaskResult]) -> TaskResult:
        """See `Pool`."""
        worker = self.workers.pop(handle)
        if (error := handle.exception()) is None:
            return handle.result()
        self._end(worker)
        raise WorkerDied(type(error).__name__)

    def close(self) -> list[str]:
        """See `Pool`."""
        warnings: list[str] = []
        leaving: list[Future[list[str]]] = []
        for worker in self.free:
            if self.executors[worker] is not None:
                with suppress(BrokenExecutor):
                    leaving.append(self.executors[worker].submit(leave_sweep, self.context))
        for future in wait(leaving, CLOSE_S).done:
            error = future.exception()
            warnings += future.result() if error is None else [f"a worker: {error}"]
        for worker in range(self.size):
            self._end(worker)
        return warnings

    def _start(self, worker: int, task: Task) -> Future[TaskResult]:
        """Gives a task to a worker, or to a new one if it has died since its last task."""
        from joblib.externals.loky import ProcessPoolExecutor

        if self.executors[worker] is not None:
            with suppress(BrokenExecutor):
                return self.executors[worker].submit(run_task, self.context, task)
            self._end(worker)
        environment = self.environments[worker]
        self.executors[worker] = ProcessPoolExecutor(max_workers=1, env=environment, initializer=_initialize)
        return self.executors[worker].submit(run_task, self.context, task)

    def _end(self, worker: int) -> None:
        if self.executors[worker] is not None:
            self.executors[worker].shutdown(wait=True, kill_workers=True)
        self.executors[worker] = None
