"""DPM++ 2M SDE against diffusers' DPMSolverMultistepScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.schedulers.dpmpp_2m_sde import DPMpp2MSDE
from diffuse.schedulers.sampler import State

SDE = {"algorithm_type": "sde-dpmsolver++"}
OPTIONS = parity.grid(
    rescale_betas_zero_snr=st.booleans(),
    final_sigmas_type=st.sampled_from(["zero", "sigma_min"]),
    solver_order=st.sampled_from([1, 2, 3]),
    solver_type=st.sampled_from(["midpoint", "heun"]),
    lower_order_final=st.booleans(),
    euler_at_final=st.booleans(),
    thresholding=st.booleans(),
    dynamic_thresholding_ratio=st.sampled_from([0.9, 0.995]),
    sample_max_value=st.sampled_from([1.0, 1.5]),
).filter(parity.has_signal)

SPACED = st.sampled_from([None, *parity.SPACED, "use_lu_lambdas"])


def leads_nowhere(sampler: DPMpp2MSDE, index: int) -> bool:
    """The reference divides by the length of a step even if that is 0, as after spaced sigmas that end at sigma_min."""
    return sampler.sigmas[index] == sampler.sigmas[index + 1] and (
        sampler.solver_type == "heun" or sampler.solver_order == 3
    )


@settings(max_examples=80, deadline=None)
@given(OPTIONS, SPACED, st.integers(2, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    # The last step of both has no length, but for the rounding of a logarithm, in which the reference's h is nothing.
    assume(spaced != "use_lu_lambdas" or config["final_sigmas_type"] == "zero")
    config = parity.with_spacing(config, spaced)
    ours, theirs = DPMpp2MSDE(**config), DPMSolverMultistepScheduler(**config, **SDE)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        # The reference takes differences of logarithms in float32, and twice them.
        parity.walk(ours, theirs, dtype=dtype, tolerance=5e-6, broken=lambda index: leads_nowhere(ours, index))


def test_each_image_draws_its_own_noise() -> None:
    sampler = DPMpp2MSDE()
    sampler.set_timesteps(10)
    sample, prediction = parity.unit_noise(), parity.unit_noise(seed=1)
    both = sampler.step(prediction, 3, State(sample), parity.generators()).sample
    second = sampler.step(prediction[1:], 3, State(sample[1:]), parity.generators()[1:]).sample
    assert torch.equal(both[1:], second)


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True, "solver_type": "heun"}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint(scheduler={"rescale_betas_zero_snr": not changes})
    parity.pictures(folder, tmp_path, "dpmpp_2m_sde", DPMSolverMultistepScheduler, changes, steps=5, **SDE)
