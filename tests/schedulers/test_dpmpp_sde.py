"""DPM++ SDE against diffusers' DPMSolverSDEScheduler with the noise given, step by step and by pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sampler_parity as parity
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.schedulers import noise_schedule
from diffuse.schedulers.build import sampler_label
from diffuse.schedulers.dpmpp_sde import DPMppSDE
from diffuse.schedulers.sampler import State

# The reference imports the package of its Brownian tree, which is not a dependency here; noise is given in its place.
sys.modules.setdefault("torchsde", ModuleType("torchsde"))
from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler  # noqa: E402

TARGET = {"_target_": "diffuse.schedulers.dpmpp_sde.DPMppSDE", "name": "dpmpp_sde"}
OPTIONS = parity.grid(prediction_type=st.sampled_from(["epsilon", "v_prediction"]))  # the reference has no third


class GivenNoise(DPMSolverSDEScheduler):  # type: ignore[misc]
    """The reference, with a Brownian motion that each image's generator draws as sigma falls."""

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        if self.noise_sampler is None:
            self.noise_sampler = BrownianMotion(sample, generator)
        return super().step(model_output, timestep, sample, return_dict=return_dict)


class BrownianMotion:
    """Its increments from where a step starts, in units of their standard deviation, as the reference's tree gives
    them."""

    def __init__(self, like: torch.Tensor, generators: list[torch.Generator]) -> None:
        self.like, self.generators = like, generators
        self.start = self.reached = 0.0
        self.moved = torch.zeros_like(like)

    def __call__(self, sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        if self.start != float(sigma):
            self.start = self.reached = float(sigma)
            self.moved = torch.zeros_like(self.like)
        drawn = noise_schedule.unit_noise(self.like, self.generators)
        self.moved = self.moved + drawn * (self.reached - float(after)) ** 0.5
        self.reached = float(after)
        return self.moved / (self.start - self.reached) ** 0.5


@settings(max_examples=80, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 30))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], spaced: str | None, steps: int) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = DPMppSDE(**config), parity.reference(GivenNoise, **config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.sigmas[::2] == pytest.approx(theirs.sigmas[::2].tolist(), rel=2e-6)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        theirs.sigmas = theirs.sigmas.double()
        parity.walk(ours, theirs, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(OPTIONS, st.integers(2, 20), st.integers(1, 3))
def test_skipped_steps(config: dict[str, Any], steps: int, skip: int) -> None:
    ours, theirs = DPMppSDE(**config), parity.reference(GivenNoise, **config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=min(skip, steps - 1))
        theirs.sigmas = theirs.sigmas.double()
        parity.walk(ours, theirs, dtype=torch.float64, skip=min(skip, steps - 1))


def test_each_image_draws_its_own_noise() -> None:
    sampler = DPMppSDE()
    sampler.set_timesteps(10)
    sample, prediction = parity.unit_noise(), parity.unit_noise(seed=1)
    for index, past in ((2, ()), (3, (sample, prediction))):
        both = sampler.step(prediction, index, State(sample, past=past), parity.generators()).sample
        alone = State(sample[1:], past=tuple(tensor[1:] for tensor in past))
        assert torch.equal(both[1:], sampler.step(prediction[1:], index, alone, parity.generators()[1:]).sample)
    assert sampler_label(TARGET) == "DPM++ SDE"


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint()
    parity.pictures(folder, tmp_path, "dpmpp_sde", GivenNoise, changes, steps=5)
