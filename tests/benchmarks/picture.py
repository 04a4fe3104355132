"""A whole picture, from the prompt to pixels, against diffusers' pipeline on the same files.

    python tests/benchmarks/picture.py                      one thread, the tiny checkpoint, 64 x 64, 20 steps
    python tests/benchmarks/picture.py --threads 2          as many as torch takes by itself on two cores
    python tests/benchmarks/picture.py --source FOLDER --side 512     any of the Stable Diffusion family

Both have their weights in memory. `cpu_only` is the memory profile that the command chooses on a CPU, which takes the
two halves of guidance one after the other; `full_gpu` takes them in one batch, as diffusers does.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import harness
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peers import TINY
from torch import Tensor

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config.groups import load_group
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.schema import Device, Dtype, GenerationRequest, HardwareConfig

PROMPT, SEED, SCALE = "a rocket on a blue background", 1, 3.0


def ours(options: argparse.Namespace, profile: str, dtype: str) -> harness.Call:
    hw = hardware.detect(HardwareConfig("", Device[options.device], Dtype[dtype], threads=options.threads))
    hardware.apply(hw)
    memory = Memory(load_group("memory_profile")[profile], hw)
    pipeline = StableDiffusion(CheckpointFolder.open(options.source), memory)
    scheduler = pipeline.scheduler({"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"})
    request = GenerationRequest(
        prompt=PROMPT,
        negative_prompt="",
        seed=SEED,
        num_images=1,
        width=options.side,
        height=options.side,
        num_inference_steps=options.steps,
        guidance_scale=SCALE,
    )
    return lambda: torch.from_numpy(pipeline(request, scheduler).frames[:, 0])


def peer(options: argparse.Namespace, dtype: str) -> harness.Call:
    loaded = StableDiffusionPipeline.from_pretrained(options.source, torch_dtype=harness.DTYPES[dtype])
    pipeline = loaded.to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    size = {"width": options.side, "height": options.side}
    make = partial(pipeline, PROMPT, num_inference_steps=options.steps, guidance_scale=SCALE, **size)

    def call() -> Tensor:
        images = make(generator=torch.Generator("cpu").manual_seed(SEED), output_type="pil").images
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=TINY)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(harness.COLUMNS.format("", "ours ms", "peer ms", "ratio", "CPU ratio", "difference"))
    for dtype in options.dtypes:
        for profile in ("cpu_only", "full_gpu"):
            if profile == "full_gpu" or options.device == "cpu":
                pair = ours(options, profile, dtype), peer(options, dtype)
                harness.compare(f"picture, {profile}, {dtype}", pair, options.repetitions, options.device)


if __name__ == "__main__":
    main()
