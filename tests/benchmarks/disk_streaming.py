"""Streaming from a disk: the peak of a process whose weights are larger than the main memory that it may use.

    python tests/benchmarks/disk_streaming.py                       2 GB of random weights within 0.5 GiB
    python tests/benchmarks/disk_streaming.py --scale 0.25 --host-gib 0.2
    python tests/benchmarks/disk_streaming.py --pages               what giving pages back costs

A model of SDXL's kind in float32, on the CPU. `base` is what the process holds before it makes the picture, after a
first one of the tiny model; `predicted` is what the profile that was chosen takes; `peak` is the most of the resident
set, mapped files among it, without the base. Without the budget everything is resident.

`--pages` packs 420 MB of weights for the processor: mapped and kept, mapped and given back after each layer, mapped at
once before that, and read into one buffer that is used again.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import memory
import torch
from memory import MIB, compute_apart, make, predicted

WIDE = {
    "block_out_channels": (256, 512, 1024),
    "attention_head_dim": (4, 8, 16),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 512,
    "addition_time_embed_dim": 64,
    "projection_class_embeddings_input_dim": 256 + 6 * 64,
}
REQUEST = ("hardware=cpu", "hardware.threads=1", "tracking=none", "seed=1", "prompt=a cactus", "num_inference_steps=2")


def measure_peaks(scale: float, host_gib: float, side: int) -> None:
    widths = tuple(int(width * scale**0.5) // 64 * 64 for width in WIDE["block_out_channels"])  # type: ignore[attr-defined]
    memory._NARROW_XL = {
        **WIDE,
        "block_out_channels": widths,
        "attention_head_dim": tuple(width // 64 for width in widths),
    }
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder) / "model", "sdxl", "diffuse.pipelines.stable_diffusion_xl.StableDiffusionXL")
        size = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB of weights, {side} x {side}; MiB")
        print(f"{'':24} {'predicted':>9} {'peak':>9} {'base':>9}")
        shared = [*REQUEST, "model=sdxl", f"model.source={model}", f"width={side}", f"height={side}"]
        for label, budget in ((f"host_gib={host_gib:g}", [f"memory_profile.host_gib={host_gib}"]), ("resident", [])):
            overrides = [*shared, *(budget or ["memory_profile=full_gpu"])]
            guess, found = predicted(overrides), compute_apart(label, overrides)
            rise = (found["rss"] - found["base"]) / MIB
            print(f"{label:24} {guess.host_bytes / MIB:9.1f} {rise:9.1f} {found['base'] / MIB:9.1f}", flush=True)


def measure_pages(layers: int = 16, width: int = 2560) -> None:
    nbytes = width * width * 4
    pack = torch.ops.mkldnn._reorder_linear_weight
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(layers):
            file.write(torch.randn(width, width).numpy().tobytes())
        file.flush()
        pages = mmap.mmap(file.fileno(), layers * nbytes, access=mmap.ACCESS_COPY)
        mapped = [
            torch.frombuffer(pages, dtype=torch.float32, count=width * width, offset=i * nbytes).view(width, width)
            for i in range(layers)
        ]
        buffer = torch.empty(width, width)
        raw = memoryview(buffer.view(-1).numpy()).cast("B")

        def keep() -> None:
            for weight in mapped:
                pack(weight)

        def give_back(populate: bool = False) -> None:
            for index, weight in enumerate(mapped):
                if populate:
                    pages.madvise(22, index * nbytes, nbytes)  # MADV_POPULATE_READ, which Python has no name for
                pack(weight)
                pages.madvise(mmap.MADV_DONTNEED, index * nbytes, nbytes)

        def read() -> None:
            for index in range(layers):
                os.preadv(file.fileno(), [raw], index * nbytes)
                pack(buffer)

        ways: dict[str, Callable[[], None]] = {
            "kept": keep,
            "given back": give_back,
            "mapped at once": lambda: give_back(True),
            "read": read,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        keep()
        for _ in range(8):
            for name, way in ways.items():
                keep() if name == "kept" else pages.madvise(mmap.MADV_DONTNEED)
                start = time.process_time()
                way()
                seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        print(f"{name:16} {statistics.median(values):.3f} s of CPU time for {layers * nbytes / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the weights")
    parser.add_argument("--host-gib", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=128, help="of the picture, in pixels")
    parser.add_argument("--pages", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.pages:
        measure_pages()
    else:
        measure_peaks(arguments.scale, arguments.host_gib, arguments.side)
    print(f"the load was {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
