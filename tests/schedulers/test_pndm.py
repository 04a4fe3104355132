"""PNDM against diffusers' PNDMScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import PNDMScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.pndm import PNDM
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.pndm.PNDM", "name": "pndm"}
OPTIONS = parity.grid(
    prediction_type=st.sampled_from(["epsilon", "v_prediction"]),  # the reference has no other
    skip_prk_steps=st.booleans(),
    set_alpha_to_one=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(OPTIONS, st.integers(4, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], steps: int, dtype: torch.dtype) -> None:
    ours, theirs = PNDM(**config), PNDMScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        # The reference goes by way of the noise even from the velocity, and divides its rounding by the signal.
        signal = float(ours.alphas_cumprod[int(ours.timesteps[0])]) ** 0.5
        parity.walk(ours, theirs, dtype=dtype, tolerance=2e-6 / signal)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(steps: int) -> None:
    ours, theirs = (kind(**parity.SD, skip_prk_steps=True) for kind in (PNDM, PNDMScheduler))
    assert parity.place(ours, theirs, steps)
    parity.walk(ours, theirs)
    with pytest.raises(ConfigError, match=f"{steps} steps: PNDM needs 4 or more"):
        PNDM(**parity.SD).set_timesteps(steps)


def run(sampler: PNDM) -> torch.Tensor:
    state = State(parity.unit_noise())
    for index, t in enumerate(sampler.timesteps):
        state = sampler.step(parity.model(state.sample, float(t)), index, state)
    return state.sample


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_given_timesteps_lead_from_one_to_the_next_and_skipped_ones_are_as_if_never_placed(
    skip_prk_steps: bool,
) -> None:
    regular, given_ones, rest = (PNDM(**parity.SD, skip_prk_steps=skip_prk_steps) for _ in range(3))
    regular.set_timesteps(10)
    given_ones.set_timesteps(0, timesteps=range(901, 0, -100))
    assert torch.equal(run(regular), run(given_ones))
    given_ones.set_timesteps(0, timesteps=range(501, 0, -100))
    rest.set_timesteps(10, skip=4)
    assert torch.equal(run(rest), run(given_ones))


def test_zero_terminal_snr_is_left_out() -> None:
    published = {**parity.SD, "rescale_betas_zero_snr": True}
    assert torch.equal(build_sampler(TARGET, published).alphas_cumprod, build_sampler(TARGET, parity.SD).alphas_cumprod)


@pytest.mark.parametrize("changes", [{"skip_prk_steps": True}, {"timestep_spacing": "linspace"}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint(scheduler={"rescale_betas_zero_snr": True})
    parity.pictures(folder, tmp_path, "pndm", PNDMScheduler, changes)
