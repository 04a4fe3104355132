"""Times this project's modules against diffusers' and transformers', with the same weights, in one process.

Each repetition runs both, one straight after the other and in an order that changes, and gives one ratio; the median of
these paired ratios is what is reported. So whatever else the machine does meanwhile falls on both alike. Processor time
is reported beside wall time on a CPU: it is what remains true on a machine that others use too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/oracle.py, however this is started

import oracle
import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FIRST = True


def arguments(about: str, **extra: Any) -> argparse.Namespace:
    """The options that every benchmark has, and those in `extra`: name -> default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15, help="pairs of timed runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    return options


def randomised(peer: nn.Module) -> nn.Module:
    """The peer with weights that keep activations in range, so that no denormal or infinity disturbs a time."""
    oracle.randomise(peer, 0)
    return peer.eval()


def pairs(ours: nn.Module, peer: nn.Module, options: argparse.Namespace) -> Iterator[tuple[str, Any, Any]]:
    """Both modules in every wanted precision, on the device: name of the precision, ours, peer's."""
    for name in options.dtypes:
        yield name, ours.to(options.device, DTYPES[name]), peer.to(options.device, DTYPES[name])


def compare(
    label: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    repetitions: int,
    device: str = "cpu",
    warm: int = 2,
) -> float:
    """Prints one line of the table, and gives the median ratio of wall time: below 1 where ours is the faster."""
    calls = (ours, peer)
    for call in calls * warm:
        _timed(call, device)
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    gc.disable()
    for repetition in range(repetitions):
        for which in (0, 1) if repetition % 2 else (1, 0):
            times[which].append(_timed(calls[which], device))
    gc.enable()
    wall, cpu = (statistics.median(mine[i] / theirs[i] for mine, theirs in zip(*times, strict=True)) for i in (0, 1))
    medians = [statistics.median(pair[0] for pair in side) * 1e3 for side in times]
    _row(label, f"{medians[0]:.1f}", f"{medians[1]:.1f}", f"{wall:.3f}", f"{cpu:.3f}")
    return wall


def _timed(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of wall and of processor time."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def _row(*cells: str) -> None:
    global _FIRST
    if _FIRST:
        _FIRST = False
        _row("", "ours ms", "peer ms", "ratio", "CPU ratio")
    print(f"{cells[0]:44}" + "".join(f"{cell:>12}" for cell in cells[1:]), flush=True)
