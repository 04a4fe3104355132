"""Streaming blocks from the host, against a resident model and against what accelerate and diffusers have for it.

    python tests/benchmarks/streaming.py                    a U-Net of SDXL's kind with 217 M parameters, on the CPU
    python tests/benchmarks/streaming.py --device cuda      on a card

`resident` is our U-Net on the device as a whole; `ours` streams every block. `diffusers` is its U-Net of the same
weights, `accelerate` that one under `accelerate.cpu_offload`, and `group` under `apply_group_offloading`, a block at a
time, with a stream on a card. All are measured in turn; a ratio is the median of the paired ratios to the same model
as it is resident. On the CPU the weights are in its memory already: ours packs a block's weights anew at each call,
the others move nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
from accelerate import cpu_offload
from diffusers import UNet2DConditionModel as DiffusersUNet
from diffusers.hooks import apply_group_offloading
from module import MODELS

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import load_weights
from diffuse.device.streaming import BlockStream

MEDIUM = {"block_out_channels": (160, 320, 640, 640), "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 512}


def make(folder: Path) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    DiffusersUNet.from_config({**peers.PUBLISHED["unet"], **MEDIUM}).save_pretrained(folder / "unet")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    return folder


def load_ours(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    model, settings, rename = MODELS["unet"]
    checkpoint = CheckpointFolder.open(folder)
    config: Any = read_architecture(settings, checkpoint.config("unet"), "unet/config.json")
    return load_weights(lambda: model(config), checkpoint, "unet", device=device, dtype=dtype, rename=rename)


def ways(folder: Path, device: torch.device, dtype: torch.dtype, only_ours: bool) -> dict[str, Any]:
    """A module by each way's name."""
    host = torch.device("cpu")
    ours = load_ours(folder, host, dtype)
    BlockStream(ours, ours.streamed_blocks, device, 0).arrive()
    if only_ours:
        return {"resident": load_ours(folder, device, dtype), "ours": ours}
    offloaded = DiffusersUNet.from_pretrained(folder / "unet", torch_dtype=dtype)
    cpu_offload(offloaded, device)
    group = DiffusersUNet.from_pretrained(folder / "unet", torch_dtype=dtype)
    apply_group_offloading(
        group,
        onload_device=device,
        offload_device=host,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    resident = load_ours(folder, device, dtype)
    theirs = DiffusersUNet.from_pretrained(folder / "unet", torch_dtype=dtype).to(device)
    return {"resident": resident, "ours": ours, "accelerate": offloaded, "diffusers": theirs, "group": group}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--only-ours", action="store_true", help="leave accelerate and diffusers out")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of this process, for a machine that does other work too"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtype = torch.float32 if arguments.device == "cpu" else torch.float16
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    sample = torch.randn(2, 4, arguments.side, arguments.side, device=device, dtype=dtype)
    text = torch.randn(2, 77, MEDIUM["cross_attention_dim"], device=device, dtype=dtype)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        modules = ways(make(Path(folder)), device, dtype, arguments.only_ours)
        seconds: dict[str, list[float]] = {name: [] for name in modules}
        for repetition in range(arguments.repetitions + 1):
            for name, module in modules.items():
                measured = timed(lambda module=module: module(sample, torch.tensor(1), text), device, clock)  # type: ignore[misc]
                if repetition:  # the first one packs weights, pins them, and traces the order of blocks
                    seconds[name].append(measured)
    base = {"ours": "resident", "accelerate": "diffusers", "group": "diffusers"}
    print(f"{'':12} {'s a step':>9} {'ratio to resident':>18}")
    for name, values in seconds.items():
        against = seconds[base.get(name, name)]
        ratio = statistics.median(a / b for a, b in zip(values, against, strict=True))
        print(f"{name:12} {statistics.median(values):9.3f} {ratio:18.2f}")


def timed(call: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """The seconds of a call, until the device has finished."""
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
