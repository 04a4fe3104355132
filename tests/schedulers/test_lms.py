"""LMS against diffusers' LMSDiscreteScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import LMSDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler, sampler_label
from diffuse.schedulers.lms import LMS, adams_bashforth
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.lms.LMS", "name": "lms"}


def exact(theirs: LMSDiscreteScheduler) -> None:
    """Lets the reference compute its weights in float64: in float32 their digits cancel where steps are short."""
    theirs.sigmas = theirs.sigmas.double()


@settings(max_examples=40, deadline=None)
@given(parity.grid(), parity.spaced(), st.integers(2, 24))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], spaced: str | None, steps: int) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = LMS(**config), LMSDiscreteScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        exact(theirs)
        parity.walk(ours, theirs, dtype=torch.float64, tolerance=5e-6)


def test_the_weights_of_even_steps_are_those_of_adams_and_bashforth() -> None:
    assert adams_bashforth([3.0], 2.0) == [-1]
    assert adams_bashforth([3.0, 4.0], 2.0) == pytest.approx([-3 / 2, 1 / 2])
    assert adams_bashforth([3.0, 4.0, 5.0, 6.0], 2.0) == pytest.approx([-55 / 24, 59 / 24, -37 / 24, 9 / 24])


def test_skipped_steps_use_the_slopes_that_there_are() -> None:
    sampler = LMS(**parity.SD)
    sampler.set_timesteps(10, skip=4)
    sample, prediction = parity.unit_noise(torch.float64), parity.unit_noise(torch.float64, seed=1)
    after = sampler.step(prediction, 0, State(sample)).sample
    torch.testing.assert_close(after, sample + prediction * (sampler.sigmas[1] - sampler.sigmas[0]))


def test_options_of_other_samplers_are_not_taken() -> None:
    published = {**parity.SD, "sigma_min": 0.1, "rescale_betas_zero_snr": True}
    sampler = build_sampler(TARGET, published)
    assert (sampler.sigma_min, sampler.rescale_betas_zero_snr) == (None, False)
    assert sampler_label(TARGET) == "LMS"
    with pytest.raises(ConfigError, match="lms has no such option"):
        build_sampler({**TARGET, "sigma_min": 0.1}, parity.SD)


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint()
    parity.pictures(folder, tmp_path, "lms", LMSDiscreteScheduler, changes, steps=6)
