"""DEIS against diffusers' DEISMultistepScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import DEISMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler, sampler_label
from diffuse.schedulers.deis import DEIS

TARGET = {"_target_": "diffuse.schedulers.deis.DEIS", "name": "deis"}
OPTIONS = parity.grid(
    solver_order=st.sampled_from([1, 2, 3]),
    lower_order_final=st.booleans(),
    thresholding=st.booleans(),
    dynamic_thresholding_ratio=st.sampled_from([0.9, 0.995]),
    sample_max_value=st.sampled_from([1.0, 1.5]),
)


def exact(theirs: DEISMultistepScheduler) -> None:
    """Lets the reference compute its weights in float64: in float32 their digits cancel where steps are short."""
    theirs.sigmas = theirs.sigmas.double()


@settings(max_examples=120, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = DEIS(**config), DEISMultistepScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        exact(theirs)
        # In float32, noise rounded where there is hardly any signal is carried to where there is much.
        tolerance = 2e-6 if dtype == torch.float64 else 2e-6 * max(1.0, *ours.sigmas)
        parity.walk(ours, theirs, dtype=dtype, tolerance=tolerance)


@settings(max_examples=15, deadline=None)
@given(parity.grid(), st.integers(4, 20))
def test_skipped_steps(config: dict[str, Any], steps: int) -> None:
    config |= {"solver_order": 3}
    ours, theirs = DEIS(**config), DEISMultistepScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=3)
        exact(theirs)
        parity.walk(ours, theirs, skip=3, tolerance=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"use_karras_sigmas": True}, {"solver_order": 3, "timestep_spacing": "trailing"}], ids=str
)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint()
    parity.pictures(folder, tmp_path, "deis", DEISMultistepScheduler, changes, steps=5)


def test_options_of_other_samplers_are_not_taken() -> None:
    published = {**parity.SD, "solver_type": "bh2", "final_sigmas_type": "zero", "rescale_betas_zero_snr": True}
    sampler = build_sampler(TARGET, published)
    assert (sampler.final_sigmas_type, sampler.rescale_betas_zero_snr) == ("sigma_min", False)
    assert sampler_label(TARGET) == "DEIS"
    with pytest.raises(ConfigError, match="deis has no such option"):
        build_sampler({**TARGET, "final_sigmas_type": "zero"}, parity.SD)
    with pytest.raises(ConfigError, match="solver_order=4: should be 1, 2 or 3"):
        DEIS(solver_order=4)
