"""DDIM against diffusers' DDIMScheduler, step by step, over its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_parity import SPACINGS

from diffuse.errors import ConfigError
from diffuse.schedulers import options
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.ddim import DDIM
from diffuse.schedulers.sampler import State

SHAPE = (2, 3, 4, 4)
TARGET = {"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"}
SD21 = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "trained_betas": None,
}

OPTIONS = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.sampled_from([50, 100, 1000]),
        "beta_start": st.sampled_from([0.0001, 0.00085]),
        "beta_end": st.sampled_from([0.012, 0.02]),
        "beta_schedule": st.sampled_from(options.BETA_SCHEDULES),
        "prediction_type": st.sampled_from(options.PREDICTIONS),
        "timestep_spacing": st.sampled_from(SPACINGS),
        "steps_offset": st.sampled_from([0, 1]),
        "rescale_betas_zero_snr": st.booleans(),
        "set_alpha_to_one": st.booleans(),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.sampled_from([1.0, 1.7]),
        "thresholding": st.booleans(),
        "dynamic_thresholding_ratio": st.sampled_from([0.9, 0.995]),
        "sample_max_value": st.sampled_from([1.0, 1.5]),
    }
).filter(lambda o: not (o["rescale_betas_zero_snr"] and o["prediction_type"] == "epsilon"))


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def model(sample: torch.Tensor, timestep: int) -> torch.Tensor:
    """Stands for a denoiser: any function of the two that is not linear."""
    return torch.tanh(sample * 0.7 + timestep / 500) + 0.1 * sample


@settings(max_examples=60, deadline=None)
@given(OPTIONS, st.integers(1, 50), st.sampled_from([0.0, 0.3, 1.0]))
def test_agrees_with_the_reference_step_by_step(config: dict[str, Any], steps: int, eta: float) -> None:
    ours, theirs = DDIM(**config, eta=eta), DDIMScheduler(**config)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    theirs.set_timesteps(steps)
    if int(theirs.timesteps[0]) >= config["num_train_timesteps"]:
        with pytest.raises(ConfigError, match="steps_offset"):
            ours.set_timesteps(steps)
        return
    ours.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps[:steps])
    b = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    state = State(b)
    mine, reference = generators(), generators()
    for index, t in enumerate(ours.timesteps):
        prediction = model(state.sample, int(t))
        state = ours.step(prediction, index, state, mine)
        a, original = state.sample, state.denoised()
        other = theirs.step(prediction, t, b, eta=eta, generator=reference)
        b = other.prev_sample
        assert torch.isfinite(a).all()
        if not torch.isfinite(b).all():  # the reference takes the root of a rounding error below 0
            assert eta == 1.0 and config["rescale_betas_zero_snr"]
            return
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        torch.testing.assert_close(original, other.pred_original_sample, rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(OPTIONS, st.integers(0, 49))
def test_add_noise_agrees_with_the_reference(config: dict[str, Any], timestep: int) -> None:
    original, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    ours = DDIM(**config)
    ours.set_timesteps(1, timesteps=[timestep])
    expected = DDIMScheduler(**config).add_noise(original, noise, torch.tensor([timestep]))
    assert torch.equal(ours.add_noise(original, noise, 0), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_stay_half_and_agree(dtype: torch.dtype) -> None:
    config = {key: value for key, value in SD21.items() if key not in ("_class_name", "skip_prk_steps")}
    ours, theirs = DDIM(**config), DDIMScheduler(**config)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    sample = torch.randn(SHAPE).to(dtype)
    prediction = torch.randn(SHAPE).to(dtype)
    mine = ours.step(prediction, 3, State(sample)).sample
    assert mine.dtype == dtype
    assert torch.equal(mine, theirs.step(prediction, theirs.timesteps[3], sample).prev_sample)


def test_each_image_draws_its_own_noise() -> None:
    scheduler = DDIM(eta=1.0)
    scheduler.set_timesteps(10)
    sample, prediction = torch.randn(SHAPE), torch.randn(SHAPE)
    both = scheduler.step(prediction, 0, State(sample), generators()).sample
    second = scheduler.step(prediction[1:], 0, State(sample[1:]), generators()[1:]).sample
    assert torch.equal(both[1:], second)


def test_given_timesteps_lead_from_one_to_the_next() -> None:
    regular, given_ones = DDIM(timestep_spacing="leading"), DDIM()
    regular.set_timesteps(10)
    given_ones.set_timesteps(10, timesteps=regular.timesteps.tolist())
    state, prediction = State(torch.randn(SHAPE)), torch.randn(SHAPE)
    for index in range(10):
        mine, other = (scheduler.step(prediction, index, state) for scheduler in (regular, given_ones))
        assert torch.equal(mine.sample, other.sample)
    for wrong in ([10, 10], [5, 9], [1000], [3, -1], []):
        with pytest.raises(ConfigError, match="timesteps must fall"):
            given_ones.set_timesteps(2, timesteps=wrong)


def test_the_first_steps_can_be_skipped() -> None:
    whole, rest = DDIM(steps_offset=1), DDIM(steps_offset=1)
    whole.set_timesteps(10)
    rest.set_timesteps(10, skip=7)
    assert torch.equal(rest.timesteps, whole.timesteps[7:])
    state, prediction = State(torch.randn(SHAPE)), torch.randn(SHAPE)
    for index in range(3):
        assert torch.equal(whole.step(prediction, 7 + index, state).sample, rest.step(prediction, index, state).sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": "abc"}, "eta=abc: should be a number from 0 to 1"),
        ({"eta": float("nan")}, "eta=nan"),
        ({"timestep_spacing": "leadng"}, "did you mean leading"),
        ({"clip_sample": 1}, "true or false"),
        ({"num_train_timesteps": 0}, "whole number from 1"),
        ({"num_train_timesteps": 10**9}, "whole number from 1 to 100000"),
        ({"num_train_timesteps": 2**40}, "whole number from 1 to 100000"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "leaves no signal"),
        ({"spacing": "leading"}, "no such option"),
        ({"_target_": "os.system"}, "should be a sampler"),
        ({"_target_": "diffuse.schedulers.options.check_options"}, "should be a sampler"),
        ({"_target_": "diffuse.schedulers.ddim.torch"}, "should be a sampler"),
    ],
)
def test_wrong_options_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_sampler({**TARGET, **change}, SD21)
    assert "\n" not in str(caught.value)


def test_more_steps_than_training_had_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_inference_steps=1001"):
        DDIM().set_timesteps(1001)
