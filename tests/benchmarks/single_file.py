"""Reading a whole checkpoint from one file, against diffusers' `from_single_file`, and against our folder.

    python tests/benchmarks/single_file.py                     one thread; 0.4 G parameters in half precision
    python tests/benchmarks/single_file.py --repetitions 5

Each way reads the same weights, in a process of its own and in an order that changes, from files that the system has
in its cache. The time is that until there are modules and each page of their weights has been read once, so that mapped
files count in full, without the imports. The peak is what the process gained by it, in units of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "support"))

import peers
import torch
from loading import resident
from torch import nn

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.single_file import SingleFile
from diffuse.checkpoints.weights import load_weights
from diffuse.pipelines.stable_diffusion import StableDiffusion

COMPONENTS = ("unet", "vae", "text_encoder")
DTYPE = torch.float16
PAGE = 4096  # bytes, of each of which one number is read
UNET = {"block_out_channels": (160, 320, 640, 640), "attention_head_dim": 8, "cross_attention_dim": 768}


def make(root: Path) -> tuple[Path, Path]:
    """A checkpoint like Stable Diffusion 1.5, with a smaller U-Net, as a folder and as one file."""
    import ldm_files
    import oracle
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    text = CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    folder = root / "folder"
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, **UNET),
        vae=AutoencoderKL(latent_channels=4, **vae),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(oracle.write_tokenizer(root / "tokenizer", "classic", oracle.END)),
        scheduler=PNDMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(DTYPE).save_pretrained(folder)
    return folder, ldm_files.write(folder, root / "file.safetensors", "sd1")


def ours(checkpoint: Checkpoint) -> Iterator[nn.Module]:
    for name in COMPONENTS:
        component = StableDiffusion.components[name]
        assert component.module is not None and component.config is not None
        config = read_architecture(component.config, checkpoint.config(name), name)
        yield load_weights(
            lambda module=component.module, config=config: module(config),  # type: ignore[misc]
            checkpoint,
            name,
            device=torch.device("cpu"),
            dtype=DTYPE,
            rename=component.rename,
        )


def theirs(folder: Path, file: Path) -> list[nn.Module]:
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, torch_dtype=DTYPE
    )
    return [getattr(pipeline, name) for name in COMPONENTS]


WAYS: dict[str, Callable[[Path, Path], list[nn.Module]]] = {
    "file": lambda folder, file: list(ours(SingleFile(file, str(file)))),
    "folder": lambda folder, file: list(ours(CheckpointFolder.open(folder))),
    "from_single_file": theirs,
}


def measure(way: str, folder: Path, file: Path) -> dict[str, float]:
    """In this process: seconds, seconds of the processor, and the peak over the size of the weights."""
    import diffusers
    import transformers

    assert transformers.CLIPTextModel  # imported, whichever way it is
    torch.set_num_threads(1)
    # What the libraries allocate once, whatever is loaded.
    list(ours(CheckpointFolder.open(peers.TINY)))
    diffusers.StableDiffusionPipeline.from_pretrained(peers.TINY, torch_dtype=DTYPE)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start, start_cpu = time.perf_counter(), time.process_time()
    modules = WAYS[way](folder, file)
    weights = [weight.detach() for module in modules for weight in module.parameters()]
    for weight in weights:
        weight.reshape(-1)[:: PAGE // DTYPE.itemsize].sum()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    size = sum(weight.nbytes for weight in weights)
    return {"seconds": seconds, "cpu": cpu, "peak": (resident("VmHWM") - before) / size, "size": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FOLDER", "FILE"), help="measures one way; used by itself")
    options = parser.parse_args()
    if options.one:
        way, folder, file = options.one
        print(json.dumps(measure(way, Path(folder), Path(file))))
        return
    with tempfile.TemporaryDirectory() as place:
        folder, file = make(Path(place))
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for turn in range(options.repetitions):
            ways = list(WAYS)
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                command = [sys.executable, __file__, "--one", way, str(folder), str(file)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    size = found["file"][0]["size"]
    print(f"{size / 2**30:.2f} GiB of weights; medians of {options.repetitions}")
    print(f"{'':18} {'seconds':>8} {'CPU s':>8} {'peak':>6}  ratio of CPU seconds to `file`")
    for way, each in found.items():
        middle = {name: statistics.median(one[name] for one in each) for name in ("seconds", "cpu", "peak")}
        ratio = statistics.median(own["cpu"] / other["cpu"] for own, other in zip(each, found["file"], strict=True))
        print(f"{way:18} {middle['seconds']:8.2f} {middle['cpu']:8.2f} {middle['peak']:6.2f}  {ratio:.2f}")


if __name__ == "__main__":
    main()
