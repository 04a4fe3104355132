"""FlowMatch Euler against diffusers' FlowMatchEulerDiscreteScheduler, step by step and by pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import command
import oracle
import pytest
import sampler_parity as parity
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.flow_match_euler import FlowMatchEuler
from diffuse.schedulers.sampler import State

TARGET = {"_target_": "diffuse.schedulers.flow_match_euler.FlowMatchEuler", "name": "flow_match_euler"}
PUBLISHED = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
OPTIONS = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.sampled_from([100, 1000]),
        "shift": st.sampled_from([0.5, 1.0, 3.0]),
        "use_dynamic_shifting": st.booleans(),
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "shift_terminal": st.sampled_from([None, 0.02, 0.1]),
        "invert_sigmas": st.booleans(),
        "stochastic_sampling": st.booleans(),
    }
).filter(lambda config: not (config["invert_sigmas"] and config["stochastic_sampling"]))
MU = st.floats(0.3, 2.5)


class Reference(FlowMatchEulerDiscreteScheduler):
    """With what the pipelines of Stable Diffusion ask of a scheduler."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return sample


def same_places(ours: FlowMatchEuler, theirs: Reference) -> None:
    """The reference computes with given sigmas in float32."""
    assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=2e-6, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(OPTIONS, parity.spaced(), st.integers(2, 40), MU, st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, mu: float, dtype: torch.dtype
) -> None:
    config = parity.with_spacing(config, spaced)
    ours, theirs = FlowMatchEuler(**config), Reference(**config)
    ours.set_timesteps(steps, mu=mu)
    theirs.set_timesteps(steps, mu=mu)
    same_places(ours, theirs)
    if not (config["stochastic_sampling"] and dtype == torch.float64):  # whose noise it draws in float64
        parity.walk(ours, theirs, dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(OPTIONS, parity.spaced(), st.lists(st.integers(1, 99), min_size=2, max_size=9, unique=True), MU)
def test_given_sigmas_and_timesteps(config: dict[str, Any], spaced: str | None, drawn: list[int], mu: float) -> None:
    config = parity.with_spacing(config, spaced)
    timesteps = sorted(map(float, drawn), reverse=True)
    shares = [t / 100 for t in timesteps]
    for places in ({"sigmas": shares}, {"timesteps": timesteps}, {"sigmas": shares, "timesteps": timesteps}):
        ours, theirs = FlowMatchEuler(**config), Reference(**config)
        ours.set_timesteps(len(drawn), **places, mu=mu)
        theirs.set_timesteps(len(drawn), **places, mu=mu)
        same_places(ours, theirs)
        parity.walk(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9000), st.floats(0.1, 1), st.floats(1, 3))
def test_the_calculated_shift_agrees_with_the_reference(tokens: int, base: float, largest: float) -> None:
    ours = FlowMatchEuler(base_image_seq_len=1024, max_image_seq_len=4097, base_shift=base, max_shift=largest)
    assert ours.calculate_shift(tokens) == pytest.approx(calculate_shift(tokens, 1024, 4097, base, largest))


@pytest.mark.parametrize("invert", [False, True])
def test_a_true_velocity_leads_from_noise_to_the_original(invert: bool) -> None:
    original, noise = parity.unit_noise(seed=1), parity.unit_noise()
    sampler = FlowMatchEuler(invert_sigmas=invert, shift=3.0)
    sampler.set_timesteps(7)
    state = State(sampler.add_noise(original, noise, 0))
    torch.testing.assert_close(state.sample, noise)
    for index in range(7):
        torch.testing.assert_close(state.sample, sampler.add_noise(original, noise, index), rtol=0, atol=1e-5)
        state = sampler.step((original - noise) if invert else (noise - original), index, state)
        torch.testing.assert_close(state.denoised(), original, rtol=0, atol=1e-5)
    torch.testing.assert_close(state.sample, original, rtol=0, atol=1e-5)


def test_skipped_steps_and_one_step() -> None:
    ours, theirs = FlowMatchEuler(shift=3.0), Reference(shift=3.0)
    theirs.set_timesteps(8)
    ours.set_timesteps(8, skip=3)
    theirs.set_begin_index(3)
    original, noise = parity.unit_noise(seed=1), parity.unit_noise()
    torch.testing.assert_close(
        ours.add_noise(original, noise, 0), theirs.scale_noise(original, theirs.timesteps[3:4], noise)
    )
    ours = FlowMatchEuler(shift_terminal=0.1)
    ours.set_timesteps(1)
    assert ours.sigmas == [1.0, 0.0]  # nothing to stretch, which makes NaN of the reference's


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion's modules, published as trained by flow matching."""
    folder = oracle.build(tmp_path_factory.mktemp("checkpoint"), parity.small())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(PUBLISHED))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}, {"stochastic_sampling": True}], ids=str)
def test_pictures(checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    parity.pictures(checkpoint, tmp_path, "flow_match_euler", Reference, changes)


def test_samplers_of_another_prediction_are_refused_by_the_command(checkpoint: Path, tmp_path: Path) -> None:
    run = ("prompt=a cat", "num_inference_steps=1", "hardware=cpu", "tracking=none")
    done = command.diffuse("model=sd21", f"model.source={checkpoint}", "scheduler=ddim", *run, cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert "scheduler=ddim does not fit this model, which predicts flow_prediction; these do: flow_m" in done.err
    assert len(done.err.splitlines()) == 1
    done = command.diffuse(
        "model=sd21", f"model.source={checkpoint}", "scheduler=flow_match_euler",
        "scheduler.use_dynamic_shifting=true", *run, cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 2
    assert "needs a shift from the number of tokens" in done.err


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_other_models_are_refused_with_what_fits_them(prediction: str) -> None:
    with pytest.raises(
        ConfigError, match=f"which predicts {prediction}; these do: ddim, .*dpmpp_2m, .*unipc"
    ) as caught:
        build_sampler(TARGET, {**parity.SD, "prediction_type": prediction})
    assert "flow_match_euler" not in str(caught.value).partition("these do")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"invert_sigmas": True, "stochastic_sampling": True}, "are both true"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "are both true"),
        ({"time_shift_type": "exponentail"}, "did you mean exponential"),
        ({"shift": 0}, "a number above 0"),
        ({"max_image_seq_len": 256}, "should be below"),
        ({"prediction_type": "epsilon"}, "no such option"),
    ],
)
def test_wrong_options_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_sampler({**TARGET, **change}, PUBLISHED)
    assert "\n" not in str(caught.value)


def test_wrong_places_are_refused() -> None:
    sampler = FlowMatchEuler()
    for wrong in ([1.1, 0.5], [0.5, 0.5], [0.5, 0.0], []):
        with pytest.raises(ConfigError, match="sigmas must fall"):
            sampler.set_timesteps(2, sigmas=wrong)
    with pytest.raises(ConfigError, match="timesteps must fall"):
        sampler.set_timesteps(2, timesteps=[1001, 3])
    with pytest.raises(ConfigError, match="3 timesteps are given for 2 sigmas"):
        sampler.set_timesteps(2, sigmas=[1, 0.5], timesteps=[3, 2, 1])
    with pytest.raises(ConfigError, match="num_inference_steps=0"):
        sampler.set_timesteps(0)
