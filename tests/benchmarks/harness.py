"""Times this project's modules against diffusers' and transformers', with the same weights, in one process.

Each repetition runs both, one straight after the other and in an order that changes, and gives one ratio; the median of
these paired ratios is what is reported. So whatever else the machine does meanwhile falls on both alike. The ratio of
processor time is beside it on a CPU: it is what remains true on a machine that others use too. So that speed is not
bought with exactness, the last column says how far the two results are apart, in units of their standard deviation.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import peers
import torch
from module import from_peer
from torch import Tensor

Call = Callable[[], Tensor]
Calls = Callable[[Any, Any, dict[str, Any]], tuple[Call, Call]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORTEST = 0.05  # seconds that one timing takes at least: a shorter call is repeated
COLUMNS = "{:40} {:>9} {:>9} {:>6} {:>9} {:>10}"


def arguments(about: str | None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """The options of every benchmark of a module, and `--parts` where it has several; sets torch up as they say."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15, help="pairs of timings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--sizes", nargs="+", choices=["tiny", "medium", "full"], default=["tiny", "medium"])
    if parts:
        parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    return options


def module_against_peer(about: str | None, components: Sequence[str], calls: Calls) -> None:
    """The table for these components. `calls(ours, peer, kind)` gives what is timed; `kind` is of the inputs."""
    options = arguments(about)
    print(COLUMNS.format("", "ours ms", "peer ms", "ratio", "CPU ratio", "difference"))
    measured = [(component, size) for component in components for size in options.sizes]
    for component, size in measured:
        if size not in peers.sizes(component):
            continue
        peer = peers.make(component, size)
        ours = from_peer(component, peer)
        for name in options.dtypes:
            kind = {"device": options.device, "dtype": DTYPES[name]}
            pair = calls(ours.to(**kind), peer.to(**kind), kind)
            compare(f"{component}, {size}, {name}", pair, options.repetitions, options.device)
        del peer, ours, pair
        gc.collect()


def compare(label: str, pair: tuple[Call, Call], repetitions: int, device: str) -> float:
    """Prints one line of the table, and gives the median ratio of wall time: below 1 where ours is the faster."""
    mine, theirs = (call().float() for call in pair)
    difference = float((mine - theirs).abs().max() / theirs.std())
    count = math.ceil(SHORTEST / _timed(pair[1], 1, device)[0])
    for call in pair:
        _timed(call, count, device)
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    gc.disable()
    for repetition in range(repetitions):
        for which in (0, 1) if repetition % 2 else (1, 0):
            times[which].append(_timed(pair[which], count, device))
    gc.enable()
    wall, cpu = (statistics.median(a[i] / b[i] for a, b in zip(*times, strict=True)) for i in (0, 1))
    medians = (f"{statistics.median(seconds for seconds, _ in side) * 1e3:.2f}" for side in times)
    print(COLUMNS.format(label, *medians, f"{wall:.3f}", f"{cpu:.3f}", f"{difference:.1e}"), flush=True)
    return wall


def _timed(call: Call, count: int, device: str) -> tuple[float, float]:
    """Seconds of wall and of processor time for one of `count` calls."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
