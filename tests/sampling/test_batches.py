"""Batches: every result is in one, steps are counted over all of them, and loading is no part of a phase."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from diffuse.device.memory import Memory
from diffuse.sampling.batches import PhaseClock, StepCounter, split_batches
from diffuse.sampling.results import Step


@pytest.mark.parametrize(("count", "size", "sizes"), [(5, 2, [2, 2, 1]), (4, 4, [4]), (3, 8, [3]), (0, 2, [])])
def test_every_result_is_in_one_batch(count: int, size: int, sizes: list[int]) -> None:
    batches = split_batches(count, size)
    assert [len(batch) for batch in batches] == sizes
    assert [index for batch in batches for index in batch] == list(range(count))


def test_steps_are_counted_over_all_batches() -> None:
    seen: list[Step] = []
    counter = StepCounter(4, seen.append)
    for timestep in (900, 400, 900, 400):
        counter.end_step(timestep, 0.5, torch.zeros(1), lambda: np.zeros((1, 1, 8, 8, 3), np.uint8))
    assert [(step.index, step.total, step.timestep) for step in seen] == [
        (0, 4, 900),
        (1, 4, 400),
        (2, 4, 900),
        (3, 4, 400),
    ]
    assert counter.seconds == [0.5] * 4


def test_reading_weights_is_no_part_of_a_phase() -> None:
    memory = SimpleNamespace(load_seconds=0.0)
    clock = PhaseClock(cast(Memory, memory))
    with clock.phase("encode_s"):
        memory.load_seconds = 100.0
    timings = clock.timings()
    assert timings["load_s"] == 100.0 and timings["encode_s"] < 0 and timings["decode_s"] == 0
