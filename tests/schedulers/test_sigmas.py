"""The ways to space sigmas: against scipy, and falling from the largest to the smallest."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sampler_parity as parity
import scipy.stats
from command import smoke
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers import sigmas
from diffuse.schedulers.ddim import DDIM
from diffuse.schedulers.deis import DEIS
from diffuse.schedulers.dpmpp_2m import DPMpp2M
from diffuse.schedulers.euler import Euler
from diffuse.schedulers.euler_ancestral import EulerAncestral
from diffuse.schedulers.heun import Heun
from diffuse.schedulers.kdpm2 import KDPM2
from diffuse.schedulers.lms import LMS
from diffuse.schedulers.unipc import UniPC


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999])
def test_the_beta_distribution_agrees_with_scipy(steps: int) -> None:
    p = 1 - np.linspace(0, 1, steps)
    np.testing.assert_allclose(sigmas.beta_quantiles(p), scipy.stats.beta.ppf(p, 0.6, 0.6), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spacing", sigmas.SPACINGS.values())
def test_every_spacing_falls_from_the_largest_to_the_smallest(spacing: sigmas.Spacing) -> None:
    spaced = spacing(12, 14.6, 0.03)
    assert (np.diff(spaced) < 0).all()
    np.testing.assert_allclose(spaced[[0, -1]], [14.6, 0.03], rtol=1e-7)  # Lu's are of logarithms in float32


@pytest.mark.parametrize(("model", "theirs"), [("sd", "StableDiffusion"), ("sdxl", "StableDiffusionXL")])
@pytest.mark.parametrize("sampler", [Euler, EulerAncestral, DPMpp2M, KDPM2, LMS, UniPC])
def test_align_your_steps_has_the_reference_s_table(sampler: Any, model: str, theirs: str) -> None:
    ours = sampler(**parity.SD, align_your_steps=model)
    ours.set_timesteps(10)
    whole = slice(None, None, ours.calls_per_step)
    assert ours.sigmas[whole][:10] == pytest.approx(AysSchedules[f"{theirs}Sigmas"][:10])
    # Their published timesteps are of a schedule that differs in its third digit.
    assert ours.timesteps[whole].tolist() == pytest.approx(AysSchedules[f"{theirs}Timesteps"], abs=1.6)
    ours.set_timesteps(23)
    assert all(a > b for a, b in pairwise(ours.sigmas))
    assert ours.sigmas[0] == pytest.approx(14.615)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align_your_steps": "sd3"}, "should be one of sd, sdxl"),
        ({"align_your_steps": "sd", "use_karras_sigmas": True}, "both space sigmas"),
        ({"align_your_steps": "sd", "sigma_min": 0.1}, "has its own ends"),
        ({"align_your_steps": "sdxl", "sigma_max": 10.0}, "has its own ends"),
        ({"use_beta_sigmas": True, "use_exponential_sigmas": True}, "are both true"),
    ],
)
def test_spacings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Euler(**options)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 1400), min_size=2, max_size=12, unique=True), st.booleans())
def test_given_sigmas_as_the_reference_takes_them(drawn: list[int], ends_in_zero: bool) -> None:
    values = [value / 100 for value in sorted(drawn, reverse=True)]
    ours, theirs = Euler(**parity.SD), EulerDiscreteScheduler(**parity.SD)
    theirs.set_timesteps(sigmas=[*values, 0.0])
    ours.set_timesteps(len(values), sigmas=[*values, 0.0] if ends_in_zero else values)
    parity.walk(ours, theirs, tolerance=5e-6)


@pytest.mark.parametrize("sampler", [EulerAncestral, Heun, KDPM2, LMS, DPMpp2M, UniPC, DEIS])
def test_every_sampler_of_sigmas_visits_those_given(sampler: Any) -> None:
    ours = sampler(**parity.SD)
    ours.set_timesteps(4, sigmas=[12, 5.5, 1.25, 0.25], skip=1)
    assert ours.sigmas[: -1 : ours.calls_per_step][:3] == [5.5, 1.25, 0.25]
    assert ours.sigmas[-1] < 0.03
    assert len(ours.timesteps) == 3 * ours.calls_per_step - (ours.calls_per_step == 2)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2],
        [3, 3, 1],
        [1, 0, 0],
        [2, -1],
        [math.inf, 1],
        [math.nan, 1],
        [0],
        [5.00000001, 5, 1],
        [1e-300, 0],
        [1e200, 1],
    ],
)
def test_sigmas_that_do_not_fall(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="sigmas="):
        Euler(**parity.SD).set_timesteps(3, sigmas=values)


@pytest.mark.parametrize("sampler", [Euler, Heun, DPMpp2M, LMS])
def test_sigmas_above_those_of_training_are_refused(sampler: Any) -> None:
    with pytest.raises(ConfigError, match=r"sigmas=\[5000, 3, 1\]: this model was trained up to 14.61; begin there"):
        sampler(**parity.SD).set_timesteps(3, sigmas=[5000, 3, 1])
    sampler(**parity.SD).set_timesteps(3, sigmas=[14.65, 3, 1])  # as published lists round it


@pytest.mark.parametrize("given", ["sigmas", "timesteps"])
@pytest.mark.parametrize(("option", "value"), [("use_karras_sigmas", True), ("align_your_steps", "sd")])
def test_given_steps_and_a_spacing_do_not_go_together(given: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{given} are given and scheduler.{option} is "):
        Euler(**parity.SD, **{option: value}).set_timesteps(3, **{given: [3, 2, 1]})


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 333, 1000])
@pytest.mark.parametrize("sampler", [DDIM, Euler, DPMpp2M, UniPC])
def test_simple_spacing_counts_down_from_the_last(sampler: Any, steps: int) -> None:
    """The formula of ComfyUI's `simple_scheduler`: the sigma at `-(1 + int(x * (1000 / steps)))`."""
    ours = sampler(**parity.SD, timestep_spacing="simple")
    ours.set_timesteps(steps)
    assert ours.timesteps.tolist() == [999 - int(x * (1000 / steps)) for x in range(steps)]


def test_ends_that_no_option_uses_are_said(tmp_path: Path) -> None:
    said = sigmas.unused_ends_note(Euler(), {"sigma_min": 5.0, "sigma_max": None, "eta": 1.0})
    assert said is not None and said.startswith("scheduler.sigma_min=5: no effect without one of use_karras_sigmas,")
    assert sigmas.unused_ends_note(Euler(use_karras_sigmas=True), {"sigma_min": 0.1}) is None
    assert sigmas.unused_ends_note(DDIM(), {"eta": 1.0}) is None
    done = smoke("scheduler=euler", "scheduler.sigma_max=3", "scheduler.sigma_min=0.1", cwd=tmp_path)
    assert "scheduler.sigma_min=0.1 and scheduler.sigma_max=3: no effect" in done.err
