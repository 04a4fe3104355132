"""Workers that are actors of a Ray cluster, or of a Ray that is started on this machine for the sweep.

They are actors and not Ray's tasks: an actor keeps its GPUs as long as it lives, and so can keep a model on them. A
process that Ray uses again for another task may get another GPU, which CUDA no longer notices.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, TextIO, cast

from diffuse.errors import ConfigError, RunError
from diffuse.schema import Device
from diffuse.sweep.interrupt import stop_signals_kept
from diffuse.sweep.launchers.pool import CLOSE_S, POLL_S, Pool, PoolLauncher, WorkerDied, check_store
from diffuse.sweep.launchers.worker import SweepContext, Task, TaskResult, leave_sweep, run_task
from diffuse.terminal import say

_CONNECT_S = 5
_FRACTIONS = 10_000  # of a GPU or a core, in which Ray counts
_START_S = 20  # without a worker, after which a message says so
_MAX_FAILED_STARTS = 3  # in a row


class RayLauncher(PoolLauncher):
    """`hydra/launcher=ray`: `workers` workers, or as many as the cluster has room for.

    The setting `ray.init` has the options of `ray.init`, such as the cluster's `address`; `ray.remote` those of an
    actor, such as `num_gpus`.
    """

    option = package = extra = "ray"

    @property
    def threads(self) -> int:
        """See `PoolLauncher`."""
        return max(1, int(self.settings["ray"]["remote"].get("num_cpus") or 1))

    def open_pool(self, context: SweepContext) -> Pool:
        """See `PoolLauncher`."""
        options = self.settings["ray"]
        return ActorPool(context, options["init"], options["remote"], self.settings["workers"])


class _Worker:
    def __init__(self, context: SweepContext) -> None:
        self.context = context

    def ready(self) -> None:
        """Returns once the worker has started."""

    def run_task(self, task: Task) -> TaskResult:
        return run_task(self.context, task)

    def leave(self) -> list[str]:
        return leave_sweep(self.context)


def _check_address(address: str | None) -> None:
    """Raises ConfigError where nothing answers, which Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise ConfigError(f"hydra.launcher.ray.init.address={address}: no Ray answers there ({error})") from error


class _Stdout:
    """Standard output without what Ray prints there, of which the first line goes to standard error.

    Ray prints from threads of its own, and while it shuts down also from the main thread.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_shutting_down = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if threading.current_thread() is threading.main_thread() and not self.is_shutting_down:
            return self.stream.write(text)
        if text.strip():
            say(text.strip().splitlines()[0])
        return len(text)


def capacity(available: float, need: float) -> int:
    """Returns how often `need` is available. It counts in Ray's ten thousandths, so that 1 has ten times 0.1."""
    return round(available * _FRACTIONS) // max(round(need * _FRACTIONS), 1)


class ActorPool(Pool):
    """As many workers as there is room for, while nodes come and go."""

    def __init__(
        self, context: SweepContext, init: dict[str, Any], remote: dict[str, Any], max_workers: int | None
    ) -> None:
        import ray

        super().__init__()
        self.ray = ray
        self.max_workers = max_workers
        self.stdout = sys.stdout
        self.owns_ray = not ray.is_initialized()
        _check_address(init.get("address"))
        if self.owns_ray:
            try:
                with stop_signals_kept():  # Ray takes SIGTERM, and would end the process at once
                    ray.init(**init)
            except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(f"hydra.launcher.ray.init: {error}") from error
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        if len(hosts) > 1:
            check_store(context.config.tracking, f"Ray's workers are on {len(hosts)} machines")
        self.options = {name: value for name, value in remote.items() if value is not None}
        if "num_gpus" not in self.options:
            uses_gpu = context.config.hardware.device in (Device.auto, Device.cuda)
            self.options["num_gpus"] = 1 if uses_gpu and ray.cluster_resources().get("GPU") else 0
        self.starting: dict[Any, Any] = {}  # workers, by the handle of ready()
        self.free: list[Any] = []
        self.workers: dict[Any, Any] = {}  # of running tasks
        self.failed_starts = 0
        self.last_active = time.monotonic()  # when there was a worker
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        self.filtered_stdout = _Stdout(self.stdout)
        sys.stdout = cast(TextIO, self.filtered_stdout)
        try:
            self.actor: Any = ray.remote(_Worker)
            self.actor = self.actor.options(**self.options)
        except (TypeError, ValueError) as error:
            self.close()
            raise ConfigError(f"hydra.launcher.ray.remote: {error}") from error
        self.context = ray.put(context)

    @property
    def size(self) -> int:
        """See `Pool`."""
        if self.max_workers:
            return self.max_workers
        available = self.ray.cluster_resources()
        needs = {"CPU": self.options.get("num_cpus", 1), "GPU": self.options["num_gpus"]}
        needs |= self.options.get("resources", {})
        return max(1, min(capacity(available.get(name, 0), need) for name, need in needs.items() if need))

    def submit(self, tasks: deque[Task]) -> None:
        """See `Pool`. Starts workers too, where there is room for more."""
        workers = len(self.starting) + len(self.free) + len(self.workers)
        for _ in range(min(self.size - workers, len(tasks) - len(self.starting) - len(self.free))):
            worker = self.actor.remote(self.context)
            self.starting[worker.ready.remote()] = worker
        while tasks and self.free:
            worker, task = self.free.pop(), tasks.popleft()
            handle = worker.run_task.remote(task)
            self.running[handle], self.workers[handle] = task, worker

    def poll(self) -> Iterable[Any]:
        """See `Pool`."""
        ready, _ = self.ray.wait([*self.running, *self.starting], timeout=POLL_S)
        if self.running or self.free or ready:
            self.last_active = time.monotonic()
        elif time.monotonic() - self.last_active > _START_S:
            self.last_active = math.inf  # the message comes once
            needs = ", ".join(f"{name}={value}" for name, value in self.options.items())
            say(f"waiting for a node of Ray with room for a worker: {needs}")
        for handle in ready:
            if handle in self.starting:
                self._finish_start(handle)
        return [handle for handle in ready if handle in self.running]

    def result(self, handle: Any) -> TaskResult:
        """See `Pool`."""
        worker = self.workers.pop(handle)
        try:
            result: TaskResult = self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(worker)
            raise WorkerDied(type(error).__name__) from error
        self.free.append(worker)
        return result

    def _finish_start(self, handle: Any) -> None:
        worker = self.starting.pop(handle)
        try:
            self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= _MAX_FAILED_STARTS:
                raise RunError(f"Ray's workers do not start: {error}") from error
        else:
            self.free.append(worker)
            self.failed_starts = 0

    def cancel_queued(self) -> None:
        """See `Pool`."""
        for worker in self.starting.values():
            self.ray.kill(worker)
        self.starting.clear()

    def close(self) -> list[str]:
        """See `Pool`."""
        warnings: list[str] = []
        leaving = [worker.leave.remote() for worker in self.free]
        ready = self.ray.wait(leaving, num_returns=len(leaving), timeout=CLOSE_S)[0] if leaving else []
        for handle in ready:
            try:
                warnings += self.ray.get(handle)
            except self.ray.exceptions.RayError as error:
                warnings.append(f"a worker: {str(error).strip().splitlines()[0]}")
        for worker in [*self.starting.values(), *self.free, *self.workers.values()]:
            self.ray.kill(worker)
        if self.owns_ray:
            self.filtered_stdout.is_shutting_down = True
            self.ray.shutdown()
        sys.stdout = self.stdout
        return warnings
