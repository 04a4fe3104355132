"""The prediction of a run beside what was measured, for its record.

A prediction takes a second or two the first time, as long as several small pictures. It is made after the pictures:
where a budget was given, where the profile was predicted anyway, and where the pictures took a minute or more.
It is made once for each shape, and for each prompt where it has weights or chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.allocator import program_bytes, rss_now
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.plan.predict import predict
from diffuse.schema import GenerationRequest, MemoryProfileConfig

LIBRARIES_GROWTH = 36 << 20  # bytes of code and tables that the first picture of a process loads, measured on a CPU

_growth = [0]  # bytes that predictions themselves have added to the process

log = logging.getLogger(__name__)


def memory_beside_prediction(
    cfg: DictConfig,
    request: GenerationRequest,
    profile: MemoryProfileConfig,
    hw: Hardware,
    checkpoints: Sequence[Checkpoint],
    measured: Mapping[str, float],
    count: int,
) -> dict[str, Any] | None:
    """Returns the predicted and the measured peaks in GiB, for the record; None where it cannot be predicted.

    Args:
        measured: the peaks, see `diffuse.device.memory.Memory.peaks`.
        count: how many results were made at once, those of other requests among them.
    """
    before = rss_now()
    try:
        guess = predict(cfg, replace(request, num_images=count), profile, hw=hw, checkpoints=checkpoints)
    except Exception as error:  # the pictures are there; a prediction that failed must not lose them
        log.warning("the memory of this run could not be predicted: %s: %s", type(error).__name__, error)
        return None
    program = program_bytes() + LIBRARIES_GROWTH + _growth[0]
    _growth[0] += max(rss_now() - before, 0)
    on_cpu = hw.device == "cpu"
    predicted = {
        "peak_gib": 0.0 if on_cpu else guess.device_bytes / GIB,  # as measured: the CPU's allocator counts nothing
        "rss_peak_gib": (program + guess.host_bytes) / GIB,
    }
    return {
        "predicted": {name: round(gib, 4) for name, gib in predicted.items()},
        "measured": {name: round(gib, 4) for name, gib in measured.items()},
    }
