"""Euler against diffusers' EulerDiscreteScheduler, step by step and by pictures, and the sigmas that samplers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import pytest
import sampler_parity as parity
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.euler import Euler

TARGET = {"_target_": "diffuse.schedulers.euler.Euler", "name": "euler"}
OPTIONS = parity.grid(
    rescale_betas_zero_snr=st.booleans(),
    final_sigmas_type=st.sampled_from(["zero", "sigma_min"]),
    interpolation_type=st.sampled_from(["linear", "linear", "log_linear"]),
    sigma_min=st.sampled_from([None, 0.05]),
    sigma_max=st.sampled_from([None, 12.0]),
)


@settings(max_examples=80, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = Euler(**config), EulerDiscreteScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        theirs.sigmas = theirs.sigmas[: steps + 1]  # where they are log-linear it has one more, which it never reaches
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        parity.walk(ours, theirs, dtype=dtype)


@settings(max_examples=15, deadline=None)
@given(parity.grid(), st.integers(2, 20), st.integers(1, 3))
def test_given_timesteps_and_skipped_steps(config: dict[str, Any], steps: int, skip: int) -> None:
    ours, theirs = Euler(**config), EulerDiscreteScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=min(skip, steps - 1))
        parity.walk(ours, theirs, skip=min(skip, steps - 1))
    given_ones = [90, 41, 40, 3]
    ours.set_timesteps(4, timesteps=given_ones)
    theirs.set_timesteps(timesteps=given_ones)
    parity.walk(ours, theirs)


def test_one_step() -> None:
    for spacing in ("linspace", "leading", "trailing"):
        ours, theirs = (kind(timestep_spacing=spacing, steps_offset=1) for kind in (Euler, EulerDiscreteScheduler))
        ours.set_timesteps(1)
        theirs.set_timesteps(1)
        parity.walk(ours, theirs)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheduler = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return oracle.build(tmp_path_factory.mktemp("checkpoint"), parity.small(scheduler=scheduler))


@pytest.mark.parametrize(
    "changes",
    [{}, {"timestep_spacing": "leading", "use_karras_sigmas": True}, {"interpolation_type": "log_linear"}],
    ids=str,
)
def test_pictures(checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    parity.pictures(checkpoint, tmp_path, "euler", EulerDiscreteScheduler, changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "are both true"),
        ({"use_karras_sigmas": "yes"}, "true or false"),
        ({"final_sigmas_type": "none"}, "one of zero, sigma_min"),
        ({"interpolation_type": "cubic"}, "one of linear, log_linear"),
        ({"sigma_min": 0}, "a number above 0"),
        ({"eta": 0.5}, "euler has no such option"),
        ({"prediction_type": "flow"}, "one of epsilon"),
    ],
)
def test_wrong_options_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_sampler({**TARGET, **change}, parity.SD)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_inference_steps=1001"):
        Euler().set_timesteps(1001)
    with pytest.raises(ConfigError, match="timesteps are given"):
        Euler(use_karras_sigmas=True).set_timesteps(2, timesteps=[500, 1])
    with pytest.raises(ConfigError, match="should fall"):
        Euler(use_karras_sigmas=True, sigma_min=200.0).set_timesteps(5)
    with pytest.raises(ConfigError, match="timesteps must fall"):
        Euler().set_timesteps(2, timesteps=[1, 500])
