"""SDXL at its full size, with random weights, eager and compiled, against diffusers eager and compiled, in one process.

python tests/benchmarks/sdxl_gpu.py                     one card of 24 GB or more: 1024 x 1024, 30 steps, bfloat16
python tests/benchmarks/sdxl_gpu.py --size small --side 64 --steps 2 --device cpu --dtype float32    that it runs

Prompts stand as random text states, as they are encoded once; a step is one guided call of the U-Net and the sampler's
step, and the VAE decodes at the end. Each way makes one picture beforehand, which compiles, and then `--repetitions` in
turns. `share` is of the arithmetic that the card could do meanwhile: `--roofline`, of which an SDXL picture of
1024 x 1024 needs 13.5 TFLOP a guided call and 10.5 for the VAE. The profile says where the time of ours goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import peers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from module import from_peer
from torch import Tensor

from diffuse.device import hardware
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.sampling.denoise import ReachedStep, denoise
from diffuse.sampling.guidance import ClassifierFreeGuidance
from diffuse.schedulers.euler import Euler
from diffuse.schedulers.sampler import State
from diffuse.schema import Compile, Dtype, MemoryProfileConfig

UNET_TFLOP, VAE_TFLOP, SIDE = 13.5, 10.5, 1024
SCALE = 5.0
SMALL = {"block_out_channels": (32, 64, 64), "attention_head_dim": (2, 4, 4), "transformer_layers_per_block": (1, 1, 2)}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACING = {"timestep_spacing": "leading"}

Make = Callable[[], Tensor]


def models(size: str, kind: dict[str, Any]) -> tuple[Any, Any]:
    """diffusers' U-Net and VAE of SDXL with random weights, made where they run."""
    torch.manual_seed(0)
    made = []
    for component, model in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        settings = {name: value for name, value in peers.PUBLISHED[f"sdxl/{component}"].items() if name[0] != "_"}
        if size == "small":
            settings |= SMALL if component == "unet" else {"block_out_channels": (32, 32, 32, 32)}
        with torch.device(kind["device"]):
            made.append(model.from_config(settings).to(kind["dtype"]).eval().requires_grad_(False))
    return made[0], made[1]


def inputs(unet: Any, side: int, kind: dict[str, Any]) -> dict[str, Tensor]:
    """Initial noise in float32, and what both halves of guidance are told."""
    generator, config = torch.Generator().manual_seed(1), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text = torch.randn(2, 77, config.cross_attention_dim, generator=generator)
    sizes = torch.tensor([[float(side), side, 0, 0, side, side]] * 2)
    return {
        "noise": torch.randn(1, config.in_channels, side // 8, side // 8, generator=generator).to(kind["device"]),
        "text": text.to(**kind),
        "pooled": torch.randn(2, pooled, generator=generator).to(**kind),
        "sizes": sizes.to(**kind),
    }


def ours(unet: Any, vae: Any, given: dict[str, Tensor], steps: int, dtype: str, compile: Compile) -> Make:
    device = given["noise"].device
    hw = Hardware(device.type, dtype=Dtype[dtype], compile=compile)
    hardware.apply(hw)
    memory = Memory(MemoryProfileConfig("all", ["*"], batch_size=1), hw)
    for name, peer in (("unet", unet), ("vae", vae)):
        memory.add(name, lambda device, dtype, name=name, peer=peer: from_peer(name, peer))
    sampler = Euler(**SCHEDULE, **SPACING)  # type: ignore[arg-type]
    halves = [
        {
            "encoder_hidden_states": given["text"][i : i + 1],
            "text_embeds": given["pooled"][i : i + 1],
            "time_ids": given["sizes"][i : i + 1],
        }
        for i in range(2)
    ]
    guidance = ClassifierFreeGuidance(halves[1], halves[0], SCALE, batched=True)

    @torch.inference_mode()
    def make() -> Tensor:
        sampler.set_timesteps(steps)
        with memory.use("unet") as model:
            noise = given["noise"] * sampler.init_noise_sigma
            told = {"dtype": given["text"].dtype, "after_step": lambda *step: None}
            latents = denoise(model, sampler, ReachedStep(State(noise)), lambda: guidance, [], **told)
        with memory.use("vae") as model:
            result: Tensor = model.decode((latents / vae.config.scaling_factor).to(given["text"].dtype))
        return result

    return make


def theirs(unet: Any, vae: Any, given: dict[str, Tensor], steps: int, compile: Compile) -> Make:
    scheduler = EulerDiscreteScheduler(**SCHEDULE, **SPACING)
    if compile is Compile.regional:  # as its documentation advises for models with repeated blocks
        unet.compile_repeated_blocks(dynamic=False)
        vae.decoder.compile(dynamic=False)
    added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}

    @torch.no_grad()
    def make() -> Tensor:
        scheduler.set_timesteps(steps, device=given["noise"].device)
        latents = given["noise"].to(given["text"].dtype) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            shown = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            output = unet(shown, timestep, given["text"], added_cond_kwargs=added, return_dict=False)[0]
            negative, positive = output.chunk(2)
            guided = negative + SCALE * (positive - negative)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        result: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return result

    return make


def seconds(make: Make, device: str) -> float:
    start = time.perf_counter()
    make()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dtype", choices=harness.DTYPES, default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--roofline", type=float, default=416.0, help="dense TFLOP/s that the card reaches")
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the kernels that take longest, of ours")
    options = parser.parse_args()
    kind = {"device": options.device, "dtype": harness.DTYPES[options.dtype]}
    unet, vae = models(options.size, kind)
    given = inputs(unet, options.side, kind)
    print(f"{'':22} {'seconds':>8} {'ratio':>6} {'share':>6} {'first':>7} {'difference':>10}", flush=True)
    work = options.steps * UNET_TFLOP + VAE_TFLOP if (options.size, options.side) == ("full", SIDE) else None
    for compile in (Compile.none,) if options.eager_only else (Compile.none, Compile.regional):
        ways = {
            "ours": ours(unet, vae, given, options.steps, options.dtype, compile),
            "diffusers": theirs(unet, vae, given, options.steps, compile),
        }
        first = {name: seconds(make, options.device) for name, make in ways.items()}
        mine, reference = (make().float() for make in ways.values())
        difference = float((mine - reference).abs().max() / reference.std())
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.repetitions):
            for name in ways if number % 2 else reversed(ways):
                taken[name].append(seconds(ways[name], options.device))
        ratio = statistics.median(a / b for a, b in zip(*taken.values(), strict=True))
        for name, values in taken.items():
            spent = statistics.median(values)
            share = "" if work is None else f"{work / options.roofline / spent:.0%}"
            figures = (f"{ratio:.3f}", f"{difference:.1e}") if name == "ours" else ("", "")
            label = f"{name}, {'eager' if compile is Compile.none else 'compiled'}"
            print(f"{label:22} {spent:8.3f} {figures[0]:>6} {share:>6} {first[name]:7.1f} {figures[1]:>10}", flush=True)
        if options.profile:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] if options.device == "cuda" else []
            with torch.profiler.profile(activities=kinds) as profile:
                seconds(ways["ours"], options.device)
            order = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
            print(profile.key_averages().table(sort_by=order, row_limit=25))


if __name__ == "__main__":
    main()
