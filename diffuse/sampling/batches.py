"""Batches of a request's results: which go together, and the steps and seconds over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from diffuse.device.memory import Memory
from diffuse.sampling.results import Step


def split_batches(count: int, size: int) -> list[range]:
    """Splits `count` results into batches of `size`, the last of which may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class StepCounter:
    """Counts the steps of all batches, and calls `on_step` with each. `seconds` holds the time of each step."""

    def __init__(self, total: int, on_step: Callable[[Step], None] | None) -> None:
        self.total = total
        self.on_step = on_step
        self.seconds: list[float] = []

    def end_step(self, timestep: float, seconds: float, latents: Tensor, decode: Callable[[], np.ndarray]) -> None:
        """Counts a step that has ended, of latents `[B, ...]`; see `Step` for the arguments."""
        index = len(self.seconds)
        self.seconds.append(seconds)
        if self.on_step is not None:
            self.on_step(Step(index, self.total, timestep, seconds, latents, decode))


class PhaseClock:
    """Measures the seconds of each phase, without those in which weights were read, which count as loading."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.start = time.perf_counter()
        self.phases = {"encode_s": 0.0, "denoise_s": 0.0, "decode_s": 0.0}

    @contextmanager
    def phase(self, name: str) -> Any:
        """Adds the time of the block to the phase `name`."""
        start, load_seconds = time.perf_counter(), self.memory.load_seconds
        yield
        self.phases[name] += time.perf_counter() - start - (self.memory.load_seconds - load_seconds)

    def timings(self) -> dict[str, float]:
        """Returns the seconds of loading, of each phase, and in total."""
        total = time.perf_counter() - self.start
        return {"load_s": self.memory.load_seconds, **self.phases, "total_s": total}
