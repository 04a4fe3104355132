"""A whole image-to-image request, from pixels to pixels, against diffusers' pipeline on the same files.

python tests/benchmarks/image_to_image.py               one thread, the tiny checkpoint, 5 of 6 steps
python tests/benchmarks/image_to_image.py --source FOLDER --side 512    any of the Stable Diffusion family

Both have their weights in memory. Guidance is on, so that each step is a batch of two.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import harness
import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from peers import TINY
from PIL import Image
from torch import Tensor

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.schema import Device, Dtype, GenerationRequest, HardwareConfig, MemoryProfileConfig, Resize

PROMPT, STEPS, STRENGTH, SCALE = "a rocket on a blue background", 6, 0.9, 3.0


def ours(folder: Path, picture: np.ndarray, device: str, dtype: str, threads: int) -> harness.Call:
    hw = hardware.detect(HardwareConfig("", Device[device], Dtype[dtype], threads=threads))
    hardware.apply(hw)
    pipeline = StableDiffusion(CheckpointFolder.open(folder), Memory(MemoryProfileConfig("all", ["*"]), hw))
    scheduler = pipeline.scheduler({"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"})
    height, width = picture.shape[:2]
    request = GenerationRequest(
        prompt=PROMPT,
        negative_prompt="",
        seed=1,
        num_images=1,
        width=width,
        height=height,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        input_image="",
        strength=STRENGTH,
        resize=Resize.stretch,
    )
    return lambda: torch.from_numpy(pipeline(request, scheduler, image=picture).frames[:, 0])


def peer(folder: Path, picture: np.ndarray, device: str, dtype: str) -> harness.Call:
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder, torch_dtype=harness.DTYPES[dtype]).to(device)
    pipeline.set_progress_bar_config(disable=True)
    make = partial(pipeline, PROMPT, Image.fromarray(picture), STRENGTH, STEPS, guidance_scale=SCALE)

    def call() -> Tensor:
        images = make(generator=torch.Generator("cpu").manual_seed(1), output_type="pil").images
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=TINY)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    picture = np.random.default_rng(0).integers(0, 256, (options.side, options.side, 3), np.uint8)
    print(harness.COLUMNS.format("", "ours ms", "peer ms", "ratio", "CPU ratio", "difference"))
    for dtype in options.dtypes:
        pair = (
            ours(options.source, picture, options.device, dtype, options.threads),
            peer(options.source, picture, options.device, dtype),
        )
        label = f"image to image, {options.side} a side, {dtype}"
        harness.compare(label, pair, options.repetitions, options.device)


if __name__ == "__main__":
    main()
