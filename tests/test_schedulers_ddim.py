"""DDIM against diffusers' DDIMScheduler, step by step, over its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse.errors import CheckpointError, ConfigError
from diffuse.schedulers import build, options
from diffuse.schedulers.ddim import DDIM

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
        "timestep_spacing": st.sampled_from(options.SPACINGS),
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
    a = b = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    mine, reference = generators(), generators()
    for t in ours.timesteps:
        prediction = model(a, int(t))
        a, original = ours.step(prediction, t, a, mine)
        other = theirs.step(prediction, t, b, eta=eta, generator=reference)
        b = other.prev_sample
        assert torch.equal(torch.isfinite(a), torch.isfinite(b))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(original, other.pred_original_sample, rtol=0, atol=1e-6, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(OPTIONS, st.integers(0, 49))
def test_add_noise_agrees_with_the_reference(config: dict[str, Any], timestep: int) -> None:
    original, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    at = torch.tensor([timestep, 49 - timestep])
    ours = DDIM(**config).add_noise(original, noise, at)
    assert torch.equal(ours, DDIMScheduler(**config).add_noise(original, noise, at))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_stay_half_and_agree(dtype: torch.dtype) -> None:
    config = {key: value for key, value in SD21.items() if key not in ("_class_name", "skip_prk_steps")}
    ours, theirs = DDIM(**config), DDIMScheduler(**config)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    sample = torch.randn(SHAPE).to(dtype)
    prediction = torch.randn(SHAPE).to(dtype)
    mine = ours.step(prediction, ours.timesteps[3], sample).sample
    assert mine.dtype == dtype
    assert torch.equal(mine, theirs.step(prediction, theirs.timesteps[3], sample).prev_sample)


def test_each_image_draws_its_own_noise() -> None:
    scheduler = DDIM(eta=1.0)
    scheduler.set_timesteps(10)
    sample, prediction = torch.randn(SHAPE), torch.randn(SHAPE)
    t = scheduler.timesteps[0]
    both = scheduler.step(prediction, t, sample, generators()).sample
    second = scheduler.step(prediction[1:], t, sample[1:], generators()[1:]).sample
    assert torch.equal(both[1:], second)


def test_given_timesteps_lead_from_one_to_the_next() -> None:
    regular, given_ones = DDIM(timestep_spacing="leading"), DDIM()
    regular.set_timesteps(10)
    given_ones.set_timesteps(10, timesteps=regular.timesteps.tolist())
    sample, prediction = torch.randn(SHAPE), torch.randn(SHAPE)
    for t in regular.timesteps:
        assert torch.equal(regular.step(prediction, t, sample).sample, given_ones.step(prediction, t, sample).sample)
    for wrong in ([10, 10], [5, 9], [1000], [3, -1], []):
        with pytest.raises(ConfigError, match="timesteps must fall"):
            given_ones.set_timesteps(2, timesteps=wrong)


def test_a_checkpoint_of_another_sampler_is_read() -> None:
    published = {**SD21, "_class_name": "PNDMScheduler", "use_karras_sigmas": False, "interpolation_type": "linear"}
    scheduler = build.build({**TARGET, "eta": 0.2, "timestep_spacing": None}, published)
    assert (scheduler.prediction_type, scheduler.steps_offset, scheduler.eta) == ("v_prediction", 1, 0.2)
    changed = build.build({**TARGET, "timestep_spacing": "trailing"}, published)
    assert changed.timestep_spacing == "trailing"
    with pytest.raises(CheckpointError, match="brand_new_trick=True is not implemented"):
        build.build(TARGET, {**published, "brand_new_trick": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": "abc"}, "eta=abc: should be a number from 0 to 1"),
        ({"eta": float("nan")}, "eta=nan"),
        ({"timestep_spacing": "leadng"}, "did you mean leading"),
        ({"clip_sample": 1}, "true or false"),
        ({"num_train_timesteps": 0}, "whole number from 1"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "leaves no signal"),
        ({"spacing": "leading"}, "no such option"),
        ({"_target_": "os.system"}, "should be a sampler"),
        ({"_target_": "diffuse.schedulers.options.check"}, "should be a sampler"),
        ({"_target_": "diffuse.schedulers.ddim.torch"}, "should be a sampler"),
    ],
)
def test_wrong_options_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build.build({**TARGET, **change}, SD21)
    assert "\n" not in str(caught.value)


def test_more_steps_than_training_had_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_inference_steps=1001"):
        DDIM().set_timesteps(1001)
