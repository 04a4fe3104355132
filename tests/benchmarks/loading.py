"""Loading a component's weights, against `from_pretrained` of diffusers and transformers: time, and the host's memory.

    python tests/benchmarks/loading.py                      one thread; the tiny checkpoint, and a U-Net of 217 M
    python tests/benchmarks/loading.py --threads 2          as many as torch takes by itself on two cores
    python tests/benchmarks/loading.py --sizes full --repetitions 3       SD 2.1's U-Net; 4 GB on disk, 8 GB of memory

Both read the same files in the same process, in turn and in an order that changes; a ratio is the median of the paired
ratios. `load` is the call that gives the module. Because a mapped file is read, and a weight brought into the
processor's order, when it is first used, the second ratio counts a forward pass over little input too. A peak is what
the process gained, in units of the loaded weights: by loading them and reading each, so that mapped files count in
full, and once that pass was over. Each is taken in a process of its own.
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
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import peers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from module import MODELS
from torch import nn
from transformers import CLIPTextModel

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import load_weights

PEERS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
STORED = {"tiny": ["as shipped"], "medium": ["float32", "float16", "bfloat16"], "full": ["float32", "float16"]}
WANTED = ["float32", "bfloat16"]
COLUMNS = "{:24} {:>10} {:>9} {:>8} {:>8} {:>6} {:>6} {:>6} {:>7} {:>6} {:>7}"


def make(root: Path, size: str, stored: str) -> Path:
    """A checkpoint of random weights, in the diffusers layout."""
    torch.manual_seed(0)
    config = dict(peers.PUBLISHED["unet"])
    if size == "medium":
        config |= {"block_out_channels": (160, 320, 640, 640), "attention_head_dim": (5, 10, 20, 20)}
        config |= {"cross_attention_dim": 512}
    model = UNet2DConditionModel.from_config(config).to(getattr(torch, stored))
    folder = root / f"{size} {stored}"
    model.save_pretrained(folder / "unet", max_shard_size="10GB")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    return folder


def ours(folder: Path, component: str, dtype: torch.dtype) -> nn.Module:
    model, settings, rename = MODELS[component]
    found = CheckpointFolder.open(folder)
    config: Any = read_architecture(settings, found.config(component), f"{component}/config.json")
    return load_weights(lambda: model(config), found, component, device="cpu", dtype=dtype, rename=rename)


def theirs(folder: Path, component: str, dtype: torch.dtype) -> nn.Module:
    module: nn.Module = PEERS[component].from_pretrained(folder / component, torch_dtype=dtype)
    return module


WAYS: dict[str, Callable[[Path, str, torch.dtype], nn.Module]] = {"ours": ours, "theirs": theirs}


@torch.no_grad()
def use(module: Any, component: str) -> None:
    """A forward pass over as little as the architecture takes."""
    config, dtype = module.config, next(module.parameters()).dtype
    if component == "unet":
        latents, text = torch.ones(1, config.in_channels, 8, 8), torch.ones(1, 8, config.cross_attention_dim)
        module(latents.to(dtype), torch.tensor(1), text.to(dtype))
    elif component == "vae":
        module.decode(torch.ones(1, config.latent_channels, 8, 8, dtype=dtype))
    else:
        module(torch.ones(1, 8, dtype=torch.int64))


def resident(name: str) -> int:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def peaks(folder: Path, component: str, way: str, wanted: str) -> tuple[float, float]:
    """In this process: the peak that loading adds, and that with first use, over the size of the loaded weights."""
    dtype = getattr(torch, wanted)
    use(WAYS[way](peers.TINY, component, dtype), component)  # what the libraries allocate once, whatever is loaded
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    module = WAYS[way](folder, component, dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    for parameter in module.parameters():
        parameter.detach().sum()
    loaded = resident("VmHWM") - before
    use(module, component)
    return loaded / size, (resident("VmHWM") - before) / size


def timed(way: str, folder: Path, component: str, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds until there is a module, and until it has been used."""
    gc.collect()
    start = time.perf_counter()
    module = WAYS[way](folder, component, dtype)
    loaded = time.perf_counter() - start
    use(module, component)
    return loaded, time.perf_counter() - start


def compare(folder: Path, component: str, dtype: torch.dtype, repetitions: int) -> tuple[list[float], list[float]]:
    """Median seconds of loading, ours and theirs; median ratios of loading and of loading until used."""
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(repetitions + 1):
        for way in WAYS if number % 2 else reversed(WAYS):
            seconds = timed(way, folder, component, dtype)
            if number:  # the first time warms the file cache
                taken[way].append(seconds)
    pairs = list(zip(*taken.values(), strict=True))
    ratios = [statistics.median(mine[i] / their[i] for mine, their in pairs) for i in (0, 1)]
    return [statistics.median(loaded for loaded, _ in side) for side in taken.values()], ratios


def rows(folder: Path, component: str, size: str, stored: str, repetitions: int) -> None:
    for wanted in WANTED:
        seconds, ratios = compare(folder, component, getattr(torch, wanted), repetitions)
        gained = [""] * 4
        if size != "tiny":  # there the weights are little beside the code that reads them
            command = [sys.executable, __file__, "--peak", str(folder), component]
            said = [subprocess.check_output([*command, way, wanted], text=True).split() for way in WAYS]
            gained = [f"{float(side[i]):.2f}" for i in (0, 1) for side in said]
        figures = [*(f"{value * 1e3:.0f}" for value in seconds), *(f"{ratio:.2f}" for ratio in ratios)]
        print(COLUMNS.format(f"{size}, {component}", stored, wanted, *figures, *gained), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", choices=STORED, default=["tiny", "medium"])
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(*peaks(Path(options.peak[0]), *options.peak[1:]))
        return
    print(
        COLUMNS.format(
            "", "stored", "loaded", "ours ms", "peer ms", "ratio", "used", "peak", "peer's", "used", "peer's"
        )
    )
    for size in options.sizes:
        for stored in STORED[size]:
            if size == "tiny":
                for component in MODELS:
                    rows(peers.TINY, component, size, stored, options.repetitions)
                continue
            with tempfile.TemporaryDirectory() as name:
                rows(make(Path(name), size, stored), "unet", size, stored, options.repetitions)


if __name__ == "__main__":
    main()
