"""The full loops of diffusers' own tests of its schedulers: their settings and recorded numbers, driven by our code.

The numbers stand in `tests/schedulers/test_scheduler_*.py` of diffusers, as sum and mean of the absolute values that a
loop ends with. Each loop begins with the same tensor that rises from 0 to 1, and has a denoiser that scales it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffuse.config.compose import compose_config
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.sampler import State

STEPS = 10
LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LONGER = {**LINEAR, "num_train_timesteps": 1100}
DDIM = {**LINEAR, "clip_sample": True}
DPM = {
    **LINEAR,
    "solver_order": 2,
    "prediction_type": "epsilon",
    "thresholding": False,
    "sample_max_value": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": False,
    "euler_at_final": False,
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
    "final_sigmas_type": "sigma_min",
}
UNIPC = {**LINEAR, "solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "sigma_min"}
DEIS = {**LINEAR, "solver_order": 2}
LCM = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VELOCITY = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
PICTURES, ROWS = (8, 8), (8,)


@dataclass(frozen=True)
class Loop:
    """One loop: a sampler, its published configuration, and what diffusers recorded of the end."""

    sampler: str
    published: dict[str, Any]
    mean: float
    sum: float | None = None
    skip: int = 0  # steps that are left out, noise being added instead
    steps: int = STEPS
    shape: tuple[int, ...] = PICTURES
    tolerance: tuple[float, float] = field(default=(1e-3, 1e-2))  # of mean and sum, as recorded

    def __str__(self) -> str:
        changed = [f"{name}={value}" for name, value in self.published.items() if name not in LINEAR]
        return f"{self.sampler} {self.steps}-{self.skip} {self.shape} {self.mean} {changed}"


LOOPS = [
    Loop("ddim", DDIM, 0.223967, 172.0067),
    Loop("ddim", DDIM | VELOCITY, 0.0684, 52.5302),
    Loop("ddim", DDIM | {"set_alpha_to_one": True, "beta_start": 0.01}, 0.1951, 149.8295),
    Loop("ddim", DDIM | {"set_alpha_to_one": False, "beta_start": 0.01}, 0.1941, 149.0784),
    Loop("ddim", DDIM, 0.4616, 354.5418, skip=8),
    Loop("pndm", LINEAR, 0.2580, 198.1318),
    Loop("pndm", LINEAR | VELOCITY, 0.0878, 67.3986),
    Loop("pndm", LINEAR | {"set_alpha_to_one": True, "beta_start": 0.01}, 0.2995, 230.0399),
    Loop("pndm", LINEAR | {"set_alpha_to_one": False, "beta_start": 0.01}, 0.2434, 186.9482),
    Loop("euler", LONGER, 0.0131, 10.0807),
    Loop("euler", LONGER | VELOCITY, 2.2676e-06, 0.0002),
    Loop("euler", LONGER | KARRAS, 0.16213932633399963, 124.52299499511719),
    Loop("euler", LONGER, 74.3007, 57062.9297, skip=8),
    Loop("euler_ancestral", LONGER, 0.1983, 152.3192),
    Loop("euler_ancestral", LONGER | VELOCITY, 0.1412, 108.4439),
    Loop("euler_ancestral", LONGER, 73.1290, 56163.0508, skip=8),
    Loop("heun", LONGER, 0.0002, 0.1233),
    Loop("heun", LONGER | VELOCITY, 6.1112e-10, 4.6934e-07),
    Loop("heun", LONGER | KARRAS, 1.9869554535034695e-07, 0.00015),
    # A sum of 75074 in float32: the recorded tolerance is less than its rounding.
    Loop("heun", LONGER, 97.7538, 75074.8906, skip=8, tolerance=(1e-3, 0.1)),
    Loop("dpmpp_2m", DPM, 0.3301),
    Loop("dpmpp_2m", DPM, 0.4146, 318.4111, skip=5),
    Loop("dpmpp_2m", DPM | {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}, 1.1364),
    Loop("dpmpp_2m", DPM | VELOCITY, 0.2251),
    Loop("dpmpp_2m", DPM | VELOCITY | KARRAS, 0.2096),
    Loop("dpmpp_2m", DPM | VELOCITY | {"use_lu_lambdas": True}, 0.1554),
    Loop("unipc", UNIPC, 0.2464),
    Loop("unipc", UNIPC | KARRAS, 0.2925),
    Loop("unipc", UNIPC | VELOCITY, 0.1014),
    Loop("unipc", UNIPC | VELOCITY | KARRAS, 0.1966),
    Loop("unipc", UNIPC, 0.4109, 315.5757, skip=8),
    Loop("unipc", UNIPC, 0.2441, shape=ROWS),
    Loop("unipc", UNIPC | KARRAS, 0.2898, shape=ROWS),
    Loop("unipc", UNIPC | VELOCITY, 0.1014, shape=ROWS),
    Loop("unipc", UNIPC | VELOCITY | KARRAS, 0.1944, shape=ROWS),
    Loop("unipc", UNIPC, 0.4072, 39.0870, skip=8, shape=ROWS),
    Loop("deis", DEIS, 0.23916),
    Loop("deis", DEIS | VELOCITY, 0.091),
    Loop("deis", DEIS, 0.41054, 315.3016, skip=8),
    Loop("lcm", LCM, 0.0244, 18.7097, steps=1, tolerance=(1e-3, 1e-3)),
    Loop("lcm", LCM, 0.2575, 197.7616, tolerance=(1e-3, 1e-3)),
]


def spaced(loop: Loop) -> bool:
    """True where sigmas are spaced for themselves, which excludes given timesteps."""
    return "use_karras_sigmas" in loop.published or "use_lu_lambdas" in loop.published


def rising(shape: tuple[int, ...], *, falls: bool = False) -> Tensor:
    """Returns the samples `[4, 3, ...]` that each loop begins with, or, falling, the noise that some add."""
    count = 4 * 3 * int(torch.tensor(shape).prod())
    values = torch.arange(count).flip(-1) if falls else torch.arange(count)
    return (values.reshape(3, *shape, 4) / count).movedim(-1, 0)


def drive(sampler: Any, loop: Loop, timesteps: list[float] | None = None) -> Tensor:
    """Denoises as a pipeline does, with the denoiser of those tests.

    Their loops hand to a step what the denoiser is shown, not the sample. For Heun's second halves, whose first slope
    is in the sample that it led to, the difference is given back.
    """
    sampler.set_timesteps(loop.steps, timesteps)
    sample = rising(loop.shape) * sampler.init_noise_sigma
    if loop.skip:
        sampler.set_timesteps(loop.steps, skip=loop.skip)
        sample = sampler.add_noise(sample, rising(loop.shape, falls=True), 0)
    generators = [torch.Generator().manual_seed(0)] * len(sample)
    state = State(sample)
    for index, timestep in enumerate(sampler.timesteps):
        shown = sampler.scale_model_input(state.sample, index)
        t = timestep.to(shown.dtype)
        lost = (state.sample - shown) / 2 if loop.sampler == "heun" and state.past else 0.0
        state = sampler.step(shown * t / (t + 1), index, state._replace(sample=shown), generators)
        state = state._replace(sample=state.sample + lost)
    return state.sample.abs()


def build(name: str, published: Any) -> Any:
    options = compose_config([f"scheduler={name}"]).scheduler
    return build_sampler({"_target_": options._target_, "name": name}, published)


def check(end: Tensor, loop: Loop) -> None:
    of_mean, of_sum = loop.tolerance
    assert float(end.mean()) == pytest.approx(loop.mean, rel=0, abs=of_mean)
    if loop.sum is not None:
        assert float(end.sum()) == pytest.approx(loop.sum, rel=0, abs=of_sum)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_ends_with_the_recorded_numbers(loop: Loop) -> None:
    check(drive(build(loop.sampler, loop.published), loop), loop)


@pytest.mark.parametrize(
    "loop",
    [loop for loop in LOOPS if not loop.skip and loop.sampler in ("dpmpp_2m", "euler", "heun") and not spaced(loop)],
    ids=str,
)
def test_given_timesteps_end_with_the_recorded_numbers(loop: Loop) -> None:
    """As in `test_custom_timesteps` there, where the spaced ones are given."""
    sampler = build(loop.sampler, loop.published)
    sampler.set_timesteps(loop.steps)
    own = sampler.timesteps.tolist()
    check(drive(sampler, loop, [*own[:1], *own[1::2]] if loop.sampler == "heun" else own), loop)


SWITCHES = {
    "dpmpp_2m": ("UniPCMultistep", "DEISMultistep", "DPMSolverMultistep"),
    "unipc": ("DEISMultistep", "DPMSolverMultistep", "UniPCMultistep"),
    "deis": ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_configuration_that_went_through_other_schedulers_ends_the_same(name: str) -> None:
    """As in `test_switch` there: each sampler takes its own settings of a file that other classes have written."""
    loop = next(loop for loop in LOOPS if loop.sampler == name)
    published: Any = loop.published
    for kind in SWITCHES[name]:
        published = getattr(diffusers, f"{kind}Scheduler").from_config(published).config
        if kind == "DEISMultistep" and name == "dpmpp_2m":
            assert published["algorithm_type"] == "deis"
    check(drive(build(name, published), loop), loop)
