"""DDPM against diffusers' DDPMScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler, sampler_label
from diffuse.schedulers.ddpm import DDPM
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.ddpm.DDPM", "name": "ddpm"}
OPTIONS = parity.grid(
    rescale_betas_zero_snr=st.booleans(),
    variance_type=st.sampled_from(["fixed_small", "fixed_small_log", "fixed_large"]),
    clip_sample=st.booleans(),
    clip_sample_range=st.sampled_from([1.0, 1.7]),
    thresholding=st.booleans(),
    dynamic_thresholding_ratio=st.sampled_from([0.9, 0.995]),
    sample_max_value=st.sampled_from([1.0, 1.5]),
).filter(parity.has_signal)


@settings(max_examples=80, deadline=None)
@given(OPTIONS, st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], steps: int, dtype: torch.dtype) -> None:
    ours, theirs = DDPM(**config), DDPMScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        with parity.noise_in_float32(scheduling_ddpm):
            parity.walk(ours, theirs, dtype=dtype)


@settings(max_examples=15, deadline=None)
@given(OPTIONS, st.integers(4, 20))
def test_given_timesteps_and_skipped_steps(config: dict[str, Any], steps: int) -> None:
    ours, theirs = DDPM(**config), DDPMScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=3)
        parity.walk(ours, theirs, skip=3)
    given_ones = [90, 41, 40, 0]
    ours.set_timesteps(4, timesteps=given_ones)
    theirs.set_timesteps(timesteps=given_ones)
    parity.walk(ours, theirs)


def test_each_image_draws_its_own_noise() -> None:
    sampler = DDPM()
    sampler.set_timesteps(10)
    sample, prediction = parity.unit_noise(), parity.unit_noise(seed=1)
    both = sampler.step(prediction, 3, State(sample), parity.generators()).sample
    second = sampler.step(prediction[1:], 3, State(sample[1:]), parity.generators()[1:]).sample
    assert torch.equal(both[1:], second)


def test_a_variance_that_the_model_would_predict_is_refused() -> None:
    for variance in ("learned", "learned_range", "fixed_large_log"):
        with pytest.raises(ConfigError, match=f"variance_type={variance}: should be one of fixed_small"):
            build_sampler(TARGET, {**parity.SD, "variance_type": variance})
    assert sampler_label(TARGET) == "DDPM"


@pytest.mark.parametrize("changes", [{"clip_sample": False}, {"variance_type": "fixed_large"}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint()
    parity.pictures(folder, tmp_path, "ddpm", DDPMScheduler, changes, steps=5)
