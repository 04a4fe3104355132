"""Heun against diffusers' HeunDiscreteScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import HeunDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.heun import Heun
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.heun.Heun", "name": "heun"}
TOLERANCE = 2e-5  # the slope at the end of a step is divided by the smaller sigma, and with it the reference's rounding
OPTIONS = parity.grid(clip_sample=st.booleans(), clip_sample_range=st.sampled_from([1.0, 1.7]))


@settings(max_examples=80, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 30), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = Heun(**config), parity.reference(HeunDiscreteScheduler, **config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        parity.walk(ours, theirs, dtype=dtype, tolerance=TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(OPTIONS, st.integers(2, 20), st.integers(1, 3))
def test_given_timesteps_and_skipped_steps(config: dict[str, Any], steps: int, skip: int) -> None:
    ours, theirs = Heun(**config), parity.reference(HeunDiscreteScheduler, **config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=min(skip, steps - 1))
        parity.walk(ours, theirs, skip=min(skip, steps - 1), tolerance=TOLERANCE)
    given_ones = [90, 41, 40, 3]
    ours.set_timesteps(4, timesteps=given_ones)
    theirs.set_timesteps(timesteps=given_ones)
    parity.walk(ours, theirs, tolerance=TOLERANCE)


def test_one_step_is_one_call() -> None:
    sampler = Heun(timestep_spacing="trailing")
    sampler.set_timesteps(1)
    assert sampler.timesteps.tolist() == [999]
    original = parity.unit_noise(seed=1)
    state = sampler.step((9 - original) / sampler.sigmas[0], 0, State(torch.full_like(original, 9.0)))
    torch.testing.assert_close(state.sample, original, rtol=0, atol=1e-4)


def test_zero_terminal_snr_is_left_out() -> None:
    published = {**parity.SD, "rescale_betas_zero_snr": True}
    assert torch.equal(build_sampler(TARGET, published).alphas_cumprod, build_sampler(TARGET, parity.SD).alphas_cumprod)
    with pytest.raises(ConfigError, match="heun has no such option"):
        build_sampler({**TARGET, "rescale_betas_zero_snr": True}, parity.SD)


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    published = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = small_checkpoint(scheduler=published)
    parity.pictures(folder, tmp_path, "heun", HeunDiscreteScheduler, changes)
