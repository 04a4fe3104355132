"""UniPC against diffusers' UniPCMultistepScheduler, step by step and by pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sampler_parity as parity
import torch
from diffusers import UniPCMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.sampler import State
from diffuse.schedulers.unipc import UniPC

OPTIONS = parity.grid(
    rescale_betas_zero_snr=st.booleans(),
    final_sigmas_type=st.sampled_from(["zero", "sigma_min"]),
    sigma_min=st.sampled_from([None, 0.05]),
    sigma_max=st.sampled_from([None, 12.0]),
    solver_order=st.sampled_from([1, 2, 3]),
    solver_type=st.sampled_from(["bh1", "bh2"]),
    predict_x0=st.booleans(),
    disable_corrector=st.sampled_from([[], [0, 1], [3]]),
    lower_order_final=st.booleans(),
    thresholding=st.booleans(),
    dynamic_thresholding_ratio=st.sampled_from([0.9, 0.995]),
    sample_max_value=st.sampled_from([1.0, 1.5]),
).filter(parity.has_signal)


def leads_to_nothing(sampler: UniPC, index: int) -> bool:
    """Where the reference may give NaN: at sigma 0, for which it has infinities, and after a step of no length."""
    return sampler.sigmas[index + 1] in (0.0, sampler.sigmas[index])


@settings(max_examples=120, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = UniPC(**config), UniPCMultistepScheduler(**config)
    if config["final_sigmas_type"] == "sigma_min" and config["sigma_min"] is not None:
        return  # the reference ends at that sigma_min with a step of no length, ours goes on to the schedule's
    if assume(parity.place(ours, theirs, steps)):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        # Noise as a difference between samples, where there is hardly any signal, multiplies the reference's rounding.
        tolerance = 1e-5 * (1 if ours.predict_x0 else max(ours.sigmas))
        parity.walk(ours, theirs, dtype=dtype, tolerance=tolerance, broken=lambda index: leads_to_nothing(ours, index))


@settings(max_examples=15, deadline=None)
@given(parity.grid(), st.integers(4, 20), st.sampled_from([[], [0], [4]]))
def test_skipped_steps(config: dict[str, Any], steps: int, disable_corrector: list[int]) -> None:
    config |= {"solver_order": 3, "disable_corrector": disable_corrector}
    ours, theirs = UniPC(**config), UniPCMultistepScheduler(**config)
    if assume(parity.place(ours, theirs, steps)):
        ours.set_timesteps(steps, skip=3)
        parity.walk(ours, theirs, skip=3, tolerance=1e-5)


def test_by_first_order_the_two_forms_are_one_down_to_the_original() -> None:
    states = []
    for predict_x0 in (True, False):
        sampler = UniPC(solver_order=1, solver_type="bh1", disable_corrector=[*range(5)], predict_x0=predict_x0)
        sampler.set_timesteps(5)
        state = State(parity.unit_noise())
        for index, t in enumerate(sampler.timesteps):
            state = sampler.step(parity.model(state.sample, float(t)), index, state)
        states.append(state)
    torch.testing.assert_close(states[0].sample, states[1].sample, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states[0].sample, states[0].original)


@pytest.mark.parametrize(
    "changes", [{}, {"use_karras_sigmas": True}, {"solver_order": 3, "timestep_spacing": "trailing"}], ids=str
)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint(scheduler={"rescale_betas_zero_snr": not changes})
    parity.pictures(folder, tmp_path, "unipc", UniPCMultistepScheduler, changes, steps=5)


def test_an_order_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="solver_order=4: should be 1, 2 or 3"):
        UniPC(solver_order=4)
