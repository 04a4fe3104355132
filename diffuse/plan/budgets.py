"""The budgets at which levers change: what each further lever of a memory profile brings the device's peak down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.hardware import Hardware
from diffuse.device.profile import EVERY
from diffuse.plan.predict import Prediction, predict
from diffuse.schema import Cleanup, GenerationRequest, GuidanceMode, MemoryProfileConfig

# In the order in which they are taken: first those that change no bit. Each has those before it, too.
LEVERS: Sequence[tuple[str, dict[str, Any]]] = (
    ("everything stays on the device", {}),
    ("memory_profile.cleanup=phases", {"cleanup": Cleanup.phases}),
    ('memory_profile.streamed=["*"]', {"streamed": [EVERY], "resident_blocks": 0}),
    ("memory_profile.batch_size=1", {"batch_size": 1}),
    ("memory_profile.guidance=sequential", {"guidance": GuidanceMode.sequential}),
    ("memory_profile.tiled_decode=true", {"tiled_decode": True}),
)


@dataclass(frozen=True)
class Budget:
    """The device's peak with the levers up to this one."""

    lever: str
    device_bytes: int
    host_bytes: int


def budgets(
    cfg: DictConfig,
    request: GenerationRequest,
    profile: MemoryProfileConfig,
    hw: Hardware,
    checkpoints: Sequence[Checkpoint],
) -> list[Budget]:
    """Returns the peak under each lever that lowers it, the largest first."""
    found: list[Budget] = []
    current = replace(
        profile,
        on_device=[EVERY],
        streamed=[],
        sharded=[],
        resident_blocks=0,
        cleanup=Cleanup.none,
        guidance=GuidanceMode.batched,
        tiled_decode=False,
        tiled_encode=False,
        half=True,
    )
    for lever, changes in LEVERS:
        if lever.startswith("memory_profile.batch_size") and (request.num_images == 1 or hw.strict):
            continue
        current = replace(current, **changes)
        guess: Prediction = predict(cfg, request, current, hw=hw, checkpoints=checkpoints)
        if not found or guess.device_bytes < found[-1].device_bytes:
            found.append(Budget(lever, guess.device_bytes, guess.host_bytes))
    return found
