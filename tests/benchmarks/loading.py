"""Loading a U-Net's weights: the time as a ratio to diffusers' `from_pretrained`, and the peak of the host's memory.

    python tests/benchmarks/loading.py [--rounds N] [--threads N]

Both read the same files (217 M parameters, made at random in a temporary folder) in the same process, in turn; the
ratio is of the medians. The peak is what the process gained, in units of the loaded weights, each in a process of its
own, and after every weight was touched, so that mapped files count in full.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import UNet2DConditionModel as Reference
from torch import nn

from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel, rename
from diffuse.weights import Checkpoint, architecture, load

CASES = [
    ("float32", "float32"),
    ("float16", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16"),
]


def make(root: Path) -> None:
    torch.manual_seed(0)
    model = Reference(
        sample_size=16,
        block_out_channels=(160, 320, 640, 640),
        cross_attention_dim=512,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    for stored in ("float32", "float16", "bfloat16"):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, stored))
        model.save_pretrained(root / stored / "unet")
        (root / stored / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))


def ours(folder: Path, dtype: torch.dtype) -> nn.Module:
    found = Checkpoint.open(folder)
    config = architecture(UNet2DConditionConfig, found.config("unet"), "unet/config.json")
    return load(lambda: UNet2DConditionModel(config), found, "unet", device="cpu", dtype=dtype, rename=rename)


def theirs(folder: Path, dtype: torch.dtype) -> nn.Module:
    model: nn.Module = Reference.from_pretrained(folder / "unet", torch_dtype=dtype)
    return model


WAYS: dict[str, Callable[[Path, torch.dtype], nn.Module]] = {"ours": ours, "theirs": theirs}


def resident(name: str) -> int:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def peak(folder: Path, way: str, wanted: str) -> float:
    """In this process: the peak that loading adds, over the size of the loaded weights."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    module = WAYS[way](folder, getattr(torch, wanted))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sum()
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return (resident("VmHWM") - before) / size


def seconds(folder: Path, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """The median time of either way."""
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, action in WAYS.items():
            start = time.perf_counter()
            module = action(folder, dtype)
            if number:  # the first round warms the file cache
                taken[way].append(time.perf_counter() - start)
            del module
            gc.collect()
    return {way: statistics.median(values) for way, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=3, metavar=("FOLDER", "WAY", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(Path(options.peak[0]), *options.peak[1:]))
        return
    print(f"{'stored':9} {'loaded':9} {'ours s':>7} {'theirs s':>9} {'ratio':>6} {'peak':>6} {'theirs':>7}")
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        for stored, wanted in CASES:
            folder = Path(name) / stored
            taken = seconds(folder, getattr(torch, wanted), options.rounds)
            peaks = {}
            for way in WAYS:
                command = [sys.executable, __file__, "--peak", str(folder), way, wanted]
                peaks[way] = float(subprocess.check_output(command, text=True))
            print(
                f"{stored:9} {wanted:9} {taken['ours']:7.3f} {taken['theirs']:9.3f} "
                f"{taken['ours'] / taken['theirs']:6.2f} {peaks['ours']:6.2f} {peaks['theirs']:7.2f}"
            )


if __name__ == "__main__":
    main()
