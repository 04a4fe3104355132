"""Training of a stage: from and to a file, for a given time, with a running average of the weights.

Time, not steps, sets the learning rate's decay, so that a stage of any length ends well.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SAVE_EVERY = 60  # seconds


class Average:
    """A running average of a module's weights that forgets the beginning."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the weights of `module`."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, now in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - keep)


def train(
    stage: str,
    modules: nn.Module,
    compute_loss: Callable[[], Tensor],
    work: Path,
    *,
    minutes: float,
    rate: float,
    average: float = 0.999,
    bfloat16: bool = False,
) -> nn.Module:
    """Minimises `compute_loss()` for `minutes`, from and to `work/stage.pt`; returns the averaged modules."""
    optimizer = torch.optim.AdamW(modules.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    mean = Average(modules, average)
    file = work / f"{stage}.pt"
    seconds_before, step = 0.0, 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        modules.load_state_dict(state["modules"])
        mean.module.load_state_dict(state["mean"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        seconds_before, step, mean.updates = state["seconds"], state["step"], state["step"]
    start = last_save = time.monotonic()
    losses: list[float] = []
    while True:
        done = min((time.monotonic() - start) / (minutes * 60), 1.0) if minutes else 1.0
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        # The fused attention's way back is slow in bfloat16, the plain one's is not.
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = compute_loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        mean.update(modules)
        losses.append(float(loss.detach()))
        step += 1
        if done >= 1 or time.monotonic() - last_save > SAVE_EVERY:
            seconds = seconds_before + time.monotonic() - start
            print(f"{stage}: step {step}, {seconds:.0f} s, loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
            last_save = time.monotonic()
            state = {"modules": modules.state_dict(), "mean": mean.module.state_dict(), "step": step}
            torch.save({**state, "optimizer": optimizer.state_dict(), "seconds": seconds}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
        if done >= 1:
            return mean.module


def averaged(module: Any, file: Path) -> Any:
    """Returns the module with the averaged weights of a stage's file, no longer in training."""
    module.load_state_dict(torch.load(file, weights_only=True)["mean"])
    return module.eval().requires_grad_(False)
