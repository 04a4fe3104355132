"""DPM2 against diffusers' KDPM2DiscreteScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import KDPM2DiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler, sampler_label
from diffuse.schedulers.kdpm2 import KDPM2
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.kdpm2.KDPM2", "name": "kdpm2"}
OPTIONS = parity.grid(prediction_type=st.sampled_from(["epsilon", "v_prediction"]))  # the reference has no third


@settings(max_examples=40, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 30), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = KDPM2(**config), parity.reference(KDPM2DiscreteScheduler, **config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        parity.walk(ours, theirs, dtype=dtype, tolerance=5e-6)


@settings(max_examples=15, deadline=None)
@given(OPTIONS, st.integers(2, 20), st.integers(1, 3))
def test_skipped_steps(config: dict[str, Any], steps: int, skip: int) -> None:
    ours, theirs = KDPM2(**config), parity.reference(KDPM2DiscreteScheduler, **config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=min(skip, steps - 1))
        parity.walk(ours, theirs, skip=min(skip, steps - 1), tolerance=5e-6)


def test_given_timesteps_and_one_step() -> None:
    sampler = KDPM2(**parity.SD)
    sampler.set_timesteps(3, timesteps=[900, 400, 10])
    assert sampler.timesteps[::2].tolist() == [900, 400, 10]
    assert all(a > b for a, b in zip(sampler.sigmas, sampler.sigmas[1:], strict=False))
    sampler.set_timesteps(1)
    original, noise = parity.unit_noise(seed=1), parity.unit_noise()
    state = sampler.step(noise, 0, State(sampler.add_noise(original, noise, 0)))
    torch.testing.assert_close(state.sample, original, rtol=0, atol=1e-4)


def test_options_of_other_samplers_are_not_taken() -> None:
    published = {**parity.SD, "sigma_min": 0.1, "rescale_betas_zero_snr": True}
    sampler = build_sampler(TARGET, published)
    assert (sampler.sigma_min, sampler.rescale_betas_zero_snr) == (None, False)
    assert sampler_label(TARGET) == "DPM2"
    with pytest.raises(ConfigError, match="kdpm2 has no such option"):
        build_sampler({**TARGET, "sigma_min": 0.1}, parity.SD)


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint()
    parity.pictures(folder, tmp_path, "kdpm2", KDPM2DiscreteScheduler, changes)
