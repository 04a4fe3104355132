"""Euler ancestral against diffusers' EulerAncestralDiscreteScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.schedulers.euler_ancestral import EulerAncestral
from diffuse.schedulers.sampler import State

OPTIONS = parity.grid(
    prediction_type=st.sampled_from(["epsilon", "v_prediction"]),  # the reference has no other
    rescale_betas_zero_snr=st.booleans(),
)


def takes_the_root_of_less_than_nothing(sigmas: torch.Tensor) -> bool:
    """Whether the reference gives NaN: rounding leaves less than none where sigma falls to a thousandth in one step."""
    before, after = sigmas[:-1], sigmas[1:]
    up = (after**2 * (before**2 - after**2) / before**2) ** 0.5
    return bool((after**2 < up**2).any())


@settings(max_examples=60, deadline=None)
@given(OPTIONS, st.integers(2, 40))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], steps: int) -> None:
    ours, theirs = EulerAncestral(**config), EulerAncestralDiscreteScheduler(**config)
    if assume(parity.place(ours, theirs, steps)) and not takes_the_root_of_less_than_nothing(theirs.sigmas):
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        parity.walk(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(OPTIONS, st.sampled_from(parity.SPACED), st.integers(2, 20))
def test_spaced_sigmas_are_those_of_euler(config: dict[str, Any], spaced: str, steps: int) -> None:
    ours, theirs = EulerAncestral(**config, **{spaced: True}), EulerAncestralDiscreteScheduler(**config)
    euler = EulerDiscreteScheduler(**config, **{spaced: True})
    if assume(parity.place(ours, euler, steps)):
        theirs.set_timesteps(steps)
        theirs.sigmas, theirs.timesteps = euler.sigmas, euler.timesteps  # it cannot space them itself
        if not takes_the_root_of_less_than_nothing(theirs.sigmas):
            parity.walk(ours, theirs)


def test_a_predicted_sample_steps_as_the_noise_that_it_implies() -> None:
    x, original = parity.unit_noise() * 9, parity.unit_noise(seed=1)
    results = []
    for prediction in ("sample", "epsilon"):
        sampler = EulerAncestral(prediction_type=prediction)
        sampler.set_timesteps(7)
        output = original if prediction == "sample" else (x - original) / sampler.sigmas[2]
        results.append(sampler.step(output, 2, State(x), parity.generators()).sample)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_from_no_signal_at_all_it_stays_finite() -> None:
    sampler = EulerAncestral(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    sampler.set_timesteps(3)
    state = State(parity.unit_noise() * sampler.init_noise_sigma)
    for index in range(3):
        state = sampler.step(parity.unit_noise(seed=index), index, state, parity.generators())
    assert torch.isfinite(state.sample).all()


def test_skipped_steps() -> None:
    ours, theirs = EulerAncestral(**parity.SD), EulerAncestralDiscreteScheduler(**parity.SD)
    ours.set_timesteps(10, skip=6)
    theirs.set_timesteps(10)
    parity.walk(ours, theirs, skip=6)


def test_each_image_draws_its_own_noise() -> None:
    sampler = EulerAncestral()
    sampler.set_timesteps(10)
    sample, prediction = parity.unit_noise(), parity.unit_noise(seed=1)
    both = sampler.step(prediction, 3, State(sample), parity.generators()).sample
    second = sampler.step(prediction[1:], 3, State(sample[1:]), parity.generators()[1:]).sample
    assert torch.equal(both[1:], second)


def test_pictures(small_checkpoint: Any, tmp_path: Path) -> None:
    folder = small_checkpoint(prediction_type="epsilon")
    parity.pictures(folder, tmp_path, "euler_ancestral", EulerAncestralDiscreteScheduler, {})
    parity.pictures(
        folder, tmp_path, "euler_ancestral", EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}
    )
