"""Workers that are actors of a Ray cluster, or of a Ray that is started here for the sweep.

Actors and not Ray's tasks: an actor has its cards to itself for as long as it lives, and so can keep a model on them. A
process that Ray uses again for another task may be given another card, which CUDA no longer notices.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections import deque
from typing import Any, TextIO, cast

from diffuse.errors import ConfigError, RunError
from diffuse.schema import Device
from diffuse.sweep.launchers.require import require
from diffuse.sweep.launchers.spread import Pool, Spread, check_store
from diffuse.sweep.launchers.work import Done, Task, Told, leave, work
from diffuse.terminal import say

_LOOK_S = 0.5  # how often to see whether nodes have come or gone, and whether Ctrl-C was pressed
_LEAVE_S = 60  # for a worker to record what it has made
_ANSWER_S = 5  # for a cluster to answer
_PARTS = 10_000  # of a card or a core, in which Ray counts
_START_S = 20  # of a worker, after which it is said that there is none
_STARTS = 3  # workers in a row that do not start, after which none is expected to


class RayLauncher(Spread):
    """`hydra/launcher=ray`: as many workers as the cluster has room for, or `workers`. `ray.init` has the options of
    `ray.init`, such as the cluster's `address`; `ray.remote` those of an actor, such as `num_gpus`."""

    def require(self) -> None:
        """See `Spread`."""
        require("ray", extra="ray", wanted="hydra/launcher=ray")

    @property
    def threads(self) -> int:
        """See `Spread`."""
        return max(1, int(self.settings["ray"]["remote"].get("num_cpus") or 1))

    def open_pool(self, told: Told) -> Pool:
        """See `Spread`."""
        options = self.settings["ray"]
        return Actors(told, options["init"], options["remote"], self.settings["workers"])


class _Worker:
    def __init__(self, told: Told) -> None:
        self.told = told

    def ready(self) -> None:
        """Returns once the worker has started."""

    def work(self, task: Task) -> Done:
        return work(self.told, task)

    def leave(self) -> list[str]:
        return leave(self.told)


def _check_address(address: str | None) -> None:
    """Raises ConfigError where nobody answers, which Ray would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        except OSError as error:
            raise ConfigError(f"hydra.launcher.ray.init.address={address}: no Ray answers there ({error})") from error


class _Stdout:
    """Standard output as it should be: of what Ray prints there, a line goes to standard error.

    It prints from threads of its own, and what it has kept back, while it shuts down, from the main thread.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.shutting_down = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes `text`, or says its first line."""
        if threading.current_thread() is threading.main_thread() and not self.shutting_down:
            return self.stream.write(text)
        if text.strip():
            say(text.strip().splitlines()[0])
        return len(text)


def times(there: float, need: float) -> int:
    """How often `need` is there, in Ray's ten thousandths: ten times 0.1 is one, whatever floats make of it."""
    return round(there * _PARTS) // max(round(need * _PARTS), 1)


class Actors(Pool):
    """As many workers as there is room for while nodes come and go."""

    def __init__(self, told: Told, init: dict[str, Any], remote: dict[str, Any], workers: int | None) -> None:
        import ray

        self.ray = ray
        self.workers = workers
        self.stdout = sys.stdout
        self.started = not ray.is_initialized()
        _check_address(init.get("address"))
        if self.started:
            try:
                ray.init(**init)
            except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(f"hydra.launcher.ray.init: {error}") from error
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        if len(hosts) > 1:
            check_store(told.config.tracking, f"Ray's workers are on {len(hosts)} machines")
        self.options = {name: value for name, value in remote.items() if value is not None}
        if "num_gpus" not in self.options:
            accelerated = told.config.hardware.device in (Device.auto, Device.cuda)
            self.options["num_gpus"] = 1 if accelerated and ray.cluster_resources().get("GPU") else 0
        self.starting: dict[Any, Any] = {}  # what ready() will return -> worker
        self.idle: list[Any] = []
        self.running: dict[Any, tuple[Any, Task]] = {}  # what work() will return -> worker, task
        self.failed_starts = 0
        self.since = time.monotonic()  # a worker was last at work
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        self.guarded = _Stdout(self.stdout)
        sys.stdout = cast(TextIO, self.guarded)
        try:
            self.kind: Any = ray.remote(_Worker)
            self.kind = self.kind.options(**self.options)
        except (TypeError, ValueError) as error:
            self.close()
            raise ConfigError(f"hydra.launcher.ray.remote: {error}") from error
        self.told = ray.put(told)

    @property
    def size(self) -> int:
        """See `Pool`."""
        if self.workers:
            return self.workers
        there = self.ray.cluster_resources()
        needs = {"CPU": self.options.get("num_cpus", 1), "GPU": self.options["num_gpus"]}
        needs |= self.options.get("resources", {})
        return max(1, min(times(there.get(name, 0), need) for name, need in needs.items() if need))

    @property
    def busy(self) -> bool:
        """See `Pool`."""
        return bool(self.running)

    def give(self, tasks: deque[Task]) -> None:
        """See `Pool`."""
        there = len(self.starting) + len(self.idle) + len(self.running)
        for _ in range(min(self.size - there, len(tasks) - len(self.starting) - len(self.idle))):
            worker = self.kind.remote(self.told)
            self.starting[worker.ready.remote()] = worker
        while tasks and self.idle:
            worker, task = self.idle.pop(), tasks.popleft()
            self.running[worker.work.remote(task)] = worker, task

    def wait(self) -> list[tuple[Task, Done | str]]:
        """See `Pool`."""
        ready, _ = self.ray.wait([*self.running, *self.starting], timeout=_LOOK_S)
        if self.running or self.idle or ready:
            self.since = time.monotonic()
        elif time.monotonic() - self.since > _START_S:
            self.since = math.inf  # said once
            needs = ", ".join(f"{name}={value}" for name, value in self.options.items())
            say(f"waiting for a node of Ray with room for a worker: {needs}")
        ended: list[tuple[Task, Done | str]] = []
        for reference in ready:
            if reference in self.starting:
                self._started(reference)
                continue
            worker, task = self.running.pop(reference)
            try:
                ended.append((task, self.ray.get(reference)))
                self.idle.append(worker)
            except self.ray.exceptions.RayError as error:
                ended.append((task, type(error).__name__))
                self.ray.kill(worker)
        return ended

    def _started(self, reference: Any) -> None:
        worker = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= _STARTS:
                raise RunError(f"Ray's workers do not start: {error}") from error
        else:
            self.idle.append(worker)
            self.failed_starts = 0

    def stop(self) -> None:
        """See `Pool`."""
        for worker in self.starting.values():
            self.ray.kill(worker)
        self.starting.clear()

    def close(self) -> list[str]:
        """See `Pool`."""
        warnings: list[str] = []
        leaving = [worker.leave.remote() for worker in self.idle]
        left = self.ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_S)[0] if leaving else []
        for reference in left:
            try:
                warnings += self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                warnings.append(f"a worker: {str(error).strip().splitlines()[0]}")
        for worker in [*self.starting.values(), *self.idle, *(worker for worker, _ in self.running.values())]:
            self.ray.kill(worker)
        if self.started:
            self.guarded.shutting_down = True
            self.ray.shutdown()
        sys.stdout = self.stdout
        return warnings
