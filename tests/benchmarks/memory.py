"""Memory that a picture takes under each profile: of the process, and of the device where there is one.

    python tests/benchmarks/memory.py [FOLDER] [--side PIXELS] [--steps N] [--device cpu|cuda|mps]

FOLDER is a Stable Diffusion checkpoint in the diffusers layout, by default the one that ships. Every profile runs in a
process of its own. The process's memory is what the picture added to Python and its libraries, mapped files included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import diffuse

SHIPPED = Path(diffuse.__file__).parent / "tiny" / "checkpoint"


def measure(folder: Path, profile_name: str, side: int | None, steps: int, device: str) -> dict[str, object]:
    """Make one picture in this process. Sizes are in GiB."""
    from diffuse.checkpoints.folder import CheckpointFolder
    from diffuse.config.groups import load_group
    from diffuse.device import hardware
    from diffuse.device.allocator import reset_rss_peak, rss_peak
    from diffuse.device.gpus import GIB
    from diffuse.device.memory import Memory
    from diffuse.pipelines.stable_diffusion import StableDiffusion
    from diffuse.schema import Device, GenerationRequest, HardwareConfig

    hw = hardware.detect(HardwareConfig(name=device, device=Device[device]))
    hardware.apply(hw)
    memory = Memory(load_group("memory_profile")[profile_name], hw)
    pipeline = StableDiffusion(CheckpointFolder.open(folder), memory)
    width, height = (side, side) if side else pipeline.default_size()
    request = GenerationRequest(
        prompt="a cactus on a pink background",
        negative_prompt="",
        seed=1,
        num_images=1,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=3.0,
    )
    scheduler = pipeline.scheduler({"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"})
    reset_rss_peak()
    before = rss_peak() / GIB
    generation = pipeline(request, scheduler)
    return {
        "device": hw.name,
        "size": f"{width} x {height}",
        "process": generation.memory["rss_peak_gib"] - before,
        "card": generation.memory["peak_gib"],
        "seconds": generation.timings["total_s"],
        "pixels": hashlib.sha256(generation.frames.tobytes()).hexdigest()[:12],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--side", type=int)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--profile", help=argparse.SUPPRESS)  # measure this one here, and print JSON
    args = parser.parse_args()
    if args.profile:
        print(json.dumps(measure(args.folder, args.profile, args.side, args.steps, args.device)))
        return
    from diffuse.config.groups import load_group

    weights = sum(path.stat().st_size for path in args.folder.rglob("*.safetensors")) / (1 << 30)
    print(f"{args.folder.name}: {weights:.3f} GiB of weights, {args.steps} steps")
    print(f"{'profile':12} {'process GiB':>11} {'device GiB':>10} {'seconds':>8}  pixels        on")
    for name in load_group("memory_profile"):
        if name == "auto":
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--profile", name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{name:12} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:12} {found['process']:11.3f} {found['card']:10.3f} {found['seconds']:8.2f}  {found['pixels']}  "
            f"{found['device']}, {found['size']}"
        )


if __name__ == "__main__":
    main()
