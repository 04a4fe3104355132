"""LCM against diffusers' LCMScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.lcm import LCM
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.lcm.LCM", "name": "lcm"}
OPTIONS = parity.grid(
    timestep_spacing=None,
    steps_offset=None,
    rescale_betas_zero_snr=st.booleans(),
    original_inference_steps=st.sampled_from([20, 50, 100]),
    timestep_scaling=st.sampled_from([0.01, 1.0, 10.0]),
    clip_sample=st.booleans(),
    clip_sample_range=st.sampled_from([1.0, 1.7]),
    thresholding=st.booleans(),
    dynamic_thresholding_ratio=st.sampled_from([0.9, 0.995]),
    sample_max_value=st.sampled_from([1.0, 1.5]),
).filter(parity.has_signal)


@settings(max_examples=80, deadline=None)
@given(OPTIONS, st.integers(1, 20))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], steps: int) -> None:
    ours, theirs = LCM(**config), LCMScheduler(**config)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    parity.walk(ours, theirs)


@settings(max_examples=15, deadline=None)
@given(OPTIONS, st.integers(4, 20))
def test_given_timesteps_and_skipped_steps(config: dict[str, Any], steps: int) -> None:
    ours, theirs = LCM(**config), LCMScheduler(**config)
    ours.set_timesteps(steps, skip=3)
    theirs.set_timesteps(steps)
    parity.walk(ours, theirs, skip=3)
    given_ones = [99, 41, 40, 3]
    ours.set_timesteps(4, timesteps=given_ones)
    theirs.set_timesteps(timesteps=given_ones)
    parity.walk(ours, theirs)


def test_each_image_draws_its_own_noise() -> None:
    sampler = LCM()
    sampler.set_timesteps(4)
    sample, prediction = parity.unit_noise(), parity.unit_noise(seed=1)
    both = sampler.step(prediction, 1, State(sample), parity.generators()).sample
    second = sampler.step(prediction[1:], 1, State(sample[1:]), parity.generators()[1:]).sample
    assert torch.equal(both[1:], second)


@pytest.mark.parametrize("changes", [{}, {"original_inference_steps": 20}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    published = {"rescale_betas_zero_snr": not changes, "timestep_spacing": "leading"}
    folder = small_checkpoint(scheduler=published)
    parity.pictures(folder, tmp_path, "lcm", LCMScheduler, changes)


def test_more_steps_than_the_distillation_had_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_inference_steps=51: should be from 1 to 50"):
        LCM().set_timesteps(51)
    with pytest.raises(ConfigError, match="original_inference_steps=2000"):
        build_sampler({**TARGET, "original_inference_steps": 2000}, parity.SD)
    with pytest.raises(ConfigError, match="lcm has no such option"):
        build_sampler({**TARGET, "timestep_spacing": "leading"}, parity.SD)
