"""DPM2 with ancestral noise against diffusers' KDPM2AncestralDiscreteScheduler, step by step and by pictures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import KDPM2AncestralDiscreteScheduler
from diffusers.schedulers import scheduling_k_dpm_2_ancestral_discrete
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.schedulers.build import sampler_label
from diffuse.schedulers.kdpm2_ancestral import KDPM2Ancestral
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.kdpm2_ancestral.KDPM2Ancestral", "name": "kdpm2_ancestral"}
OPTIONS = parity.grid(
    prediction_type=st.sampled_from(["epsilon", "v_prediction"]),  # the reference has no third
    # Along the cosine's steps, from sigma 20000 to 1, the reference's timesteps between are of digits that cancelled.
    beta_schedule=st.sampled_from(["linear", "scaled_linear"]),
)


def exact(theirs: KDPM2AncestralDiscreteScheduler) -> None:
    """Gives the reference its own formulas' values in float64: in float32 their digits cancel where steps are long."""
    theirs.sigmas = theirs.sigmas.double()
    sigmas, after = theirs.sigmas[:-2:2], theirs.sigmas[1:-1:2]
    up = (after**2 * (sigmas**2 - after**2) / sigmas**2) ** 0.5
    down = (after**2 - up**2).clamp(min=0) ** 0.5
    for name, values in (("sigmas_up", up), ("sigmas_down", down), ("sigmas_interpol", (sigmas * down) ** 0.5)):
        setattr(theirs, name, values.repeat_interleave(2))


@settings(max_examples=40, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 30), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = KDPM2Ancestral(**config), parity.reference(KDPM2AncestralDiscreteScheduler, **config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        # Over longer steps the digits of the reference's timesteps between cancel, too.
        wholes = ours.sigmas[:-1:2]
        assume(all(sigma < 20 * after for sigma, after in pairwise(wholes)))
        exact(theirs)
        with parity.noise_in_float32(scheduling_k_dpm_2_ancestral_discrete):
            parity.walk(ours, theirs, dtype=dtype, tolerance=5e-6)


def test_each_image_draws_its_own_noise() -> None:
    sampler = KDPM2Ancestral()
    sampler.set_timesteps(10)
    sample, prediction = parity.unit_noise(), parity.unit_noise(seed=1)
    both = sampler.step(prediction, 3, State(sample, past=(sample,)), parity.generators()).sample
    alone = State(sample[1:], past=(sample[1:],))
    assert torch.equal(both[1:], sampler.step(prediction[1:], 3, alone, parity.generators()[1:]).sample)
    assert sampler_label(TARGET) == "DPM2 a"


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}], ids=str)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint()
    parity.pictures(folder, tmp_path, "kdpm2_ancestral", KDPM2AncestralDiscreteScheduler, changes)
