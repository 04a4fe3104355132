"""What each sampler itself costs, against its counterpart in diffusers.

python tests/benchmarks/sampler.py                      one thread: one picture of 512 x 512, and four of 1024 x 1024
python tests/benchmarks/sampler.py --samplers heun      of one only
python tests/benchmarks/sampler.py --device cuda        where the launches of kernels are what costs

A whole walk is timed: choosing the timesteps, then for each step what the model is shown, and where its prediction
leads. Predictions were drawn beforehand. With bfloat16 they, and what the model is shown, are bfloat16: our own state
stays float32 and is converted, diffusers' is bfloat16, as in the pipelines of both.
"""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import diffusers
import harness
import torch
from torch import Tensor

from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.sampler import State

SHAPES = [(1, 4, 64, 64), (4, 4, 128, 128)]
# As the published configurations of Stable Diffusion and SDXL have it.
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("DDIM", "DDIMScheduler", TRAINED | {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": ("PNDM", "PNDMScheduler", TRAINED | {"skip_prk_steps": True}),
    "euler": ("Euler", "EulerDiscreteScheduler", TRAINED),
    "euler_ancestral": ("EulerAncestral", "EulerAncestralDiscreteScheduler", TRAINED),
    "heun": ("Heun", "HeunDiscreteScheduler", TRAINED),
    "dpmpp_2m": ("DPMpp2M", "DPMSolverMultistepScheduler", TRAINED),
    "dpmpp_2m_sde": ("DPMpp2MSDE", "DPMSolverMultistepScheduler", TRAINED),
    "unipc": ("UniPC", "UniPCMultistepScheduler", TRAINED),
    "lcm": ("LCM", "LCMScheduler", TRAINED),
    "flow_match_euler": ("FlowMatchEuler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
THEIRS_ALONE: dict[str, dict[str, Any]] = {"dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}


def ours(name: str, steps: int, noise: Tensor, outputs: list[Tensor]) -> harness.Call:
    class_name, _, settings = PEERS[name]
    known = {key: value for key, value in settings.items() if name != "lcm" or key != "steps_offset"}
    flow = {"_class_name": "FlowMatch"} if name == "flow_match_euler" else {}
    sampler = build_sampler({"_target_": f"diffuse.schedulers.{name}.{class_name}"}, known | flow)
    dtype = outputs[0].dtype

    def walk() -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(noise))]
        sampler.set_timesteps(steps)
        state = State(noise * sampler.init_noise_sigma)
        for index in range(len(sampler.timesteps)):
            sampler.scale_model_input(state.sample, index).to(dtype)
            state = sampler.step(outputs[index].float(), index, state, generators)
        return state.sample

    return walk


def theirs(name: str, steps: int, noise: Tensor, outputs: list[Tensor]) -> harness.Call:
    _, class_name, settings = PEERS[name]
    scheduler = getattr(diffusers, class_name)(**settings, **THEIRS_ALONE.get(name, {}))
    stochastic = "generator" in inspect.signature(scheduler.step).parameters
    dtype = outputs[0].dtype

    def walk() -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(noise))]
        drawn = {"generator": generators} if stochastic else {}
        scheduler.set_timesteps(steps, device=noise.device)
        sample = noise.to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
        for index, timestep in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(outputs[index], timestep, sample, **drawn, return_dict=False)[0]
        return sample

    return walk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    # A model beside a sampler works in larger tensors, after which the C library keeps what a small one leaves.
    torch.zeros(24 << 20, dtype=torch.uint8)
    print(harness.COLUMNS.format("", "ours ms", "peer ms", "ratio", "CPU ratio", "difference"))
    for name in options.samplers:
        for shape in SHAPES:
            for dtype in options.dtypes:
                generator = torch.Generator().manual_seed(0)
                noise = torch.randn(shape, generator=generator).to(options.device)
                kind = {"device": options.device, "dtype": harness.DTYPES[dtype]}
                calls = 2 * options.steps  # at most
                outputs = [torch.randn(shape, generator=generator).to(**kind) for _ in range(calls)]
                pair = (ours(name, options.steps, noise, outputs), theirs(name, options.steps, noise, outputs))
                sizes = "x".join(map(str, shape))
                harness.compare(f"{name}, {sizes}, {dtype}", pair, options.repetitions, options.device)


if __name__ == "__main__":
    main()
