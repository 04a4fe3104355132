"""Budgets from the least that works to what everything takes at once, and what is chosen and measured under each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracle
import oracle_sdxl
import pytest
from device_bytes import DeviceBytes
from picture_parity import photograph, stencil

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.device.gpus import GIB
from diffuse.errors import ConfigError
from diffuse.plan.choose_levers import Choice
from diffuse.run.open import close_pipeline
from diffuse.run.prepare import prepare
from diffuse.run.run import compute

KINDS = ("tiny", "sd21", "sdxl", "refined", "inpaint")
IN_MAIN_MEMORY = 16 << 10  # bytes of noise and latents, which are not on the device
_BASE = (
    *("hardware=cpu", "hardware.threads=1", "hardware.deterministic=strict", "tracking=none"),
    *("num_inference_steps=1", "seed=5", "prompt=a rocket"),
)
_SMALL = ("width=64", "height=64")


def overrides_of(kind: str, root: Path) -> list[str]:
    """Returns the overrides of a kind of picture. Its checkpoints are made below `root` where they are not there."""

    def made(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            if name == "refiner":
                oracle_sdxl.build_refiner(folder)
            elif name == "sdxl":
                oracle_sdxl.build(folder, oracle_sdxl.Variant())
            else:
                oracle.build(folder, oracle.Variant(inpaints=name == "inpaint"))
        return folder

    if kind == "tiny":
        return []
    if kind in ("sd21", "sdxl"):
        return [f"model={kind}", f"model.source={made(kind)}", *_SMALL]
    if kind == "refined":
        refiner = ["refiner=sdxl", f"refiner.source={made('refiner')}", "num_inference_steps=2", "denoising_end=0.5"]
        return ["model=sdxl", f"model.source={made('sdxl')}", *refiner, *_SMALL]
    pictures = photograph(root / "photo.png"), stencil(root / "mask.png")
    given = [f"input_image={pictures[0]}", f"mask_image={pictures[1]}", *_SMALL]
    return ["model=sd21", f"model.source={made('inpaint')}", *given]


@dataclass(frozen=True)
class Rung:
    """A budget in bytes, what is chosen for it, the most bytes that were on the device, and the frames."""

    budget: float
    choice: Choice
    peak: int
    frames: np.ndarray

    def check(self, expected: np.ndarray) -> None:
        """Checks that the budget is kept, by what is predicted and by what was, and that no pixel is another."""
        assert self.choice.device_bytes <= self.budget, self.choice.line()
        assert self.peak <= self.budget + IN_MAIN_MEMORY, self.choice.line()
        assert self.peak > 0.85 * self.choice.device_bytes, self.choice.line()
        assert np.array_equal(self.frames, expected), self.choice.line()


class Ladder:
    """The budgets of one kind of picture. What has the same levers is made once.

    Attributes:
        everything: the choice where there is room for all.
        expected: its frames.
        floor: the least budget that works, in bytes.
    """

    def __init__(self, kind: str, root: Path) -> None:
        self._overrides = [*_BASE, *overrides_of(kind, root)]
        self._known: dict[tuple[str, ...], tuple[int, np.ndarray]] = {}
        top = self._measure(8 * GIB)
        self.everything, self.expected = top.choice, top.frames
        with pytest.raises(ConfigError, match="least that works is") as refusal:
            self._measure(1e-6 * GIB)
        self.floor = float(re.findall(r"works is ([0-9.]+) GiB", str(refusal.value))[0]) * GIB

    @property
    def ways(self) -> int:
        """The number of different choices that were made."""
        return len(self._known)

    def climb(self, tenths: Sequence[int]) -> Iterator[Rung]:
        """Yields a rung for each share of the way from the floor to what everything takes."""
        for each in tenths:
            yield self._measure(self.floor + (self.everything.device_bytes - self.floor) * each / 10)

    def _measure(self, budget: float) -> Rung:
        """Measures a second picture, for which the process holds what the first left."""
        cfg = compose_config([*self._overrides, f"memory_profile.budget_gib={budget / GIB!r}"])
        prepared = prepare(cfg, draft_requests(cfg)[0])
        choice = prepared.opened.choice
        assert choice is not None
        if choice.levers not in self._known:
            compute([prepared])  # reads the weights
            with DeviceBytes(prepared.opened.pipeline.memory) as mode:
                made = compute([prepared])[0].frames
            self._known[choice.levers] = mode.device_peak, made
        close_pipeline(prepared.opened.pipeline)
        return Rung(budget, choice, *self._known[choice.levers])
