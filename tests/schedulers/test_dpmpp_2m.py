"""DPM++ 2M against diffusers' DPMSolverMultistepScheduler, step by step and by pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sampler_parity as parity
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffuse.errors import ConfigError
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.dpmpp_2m import DPMpp2M

TARGET = {"_target_": "diffuse.schedulers.dpmpp_2m.DPMpp2M", "name": "dpmpp_2m"}
OPTIONS = parity.grid(
    rescale_betas_zero_snr=st.booleans(),
    final_sigmas_type=st.sampled_from(["zero", "sigma_min"]),
    solver_order=st.sampled_from([1, 2, 3]),
    solver_type=st.sampled_from(["midpoint", "heun"]),
    lower_order_final=st.booleans(),
    euler_at_final=st.booleans(),
    thresholding=st.booleans(),
    dynamic_thresholding_ratio=st.sampled_from([0.9, 0.995]),
    sample_max_value=st.sampled_from([1.0, 1.5]),
).filter(parity.has_signal)

SPACED = st.sampled_from([None, *parity.SPACED, "use_lu_lambdas"])


def leads_nowhere(sampler: DPMpp2M, index: int) -> bool:
    """The reference divides by the length of a step even if that is 0, as after spaced sigmas that end at sigma_min."""
    return sampler.sigmas[index] == sampler.sigmas[index + 1] and (
        sampler.solver_type == "heun" or sampler.solver_order == 3
    )


@settings(max_examples=80, deadline=None)
@given(OPTIONS, SPACED, st.integers(2, 40), st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_the_reference_step_by_step(
    config: dict[str, Any], spaced: str | None, steps: int, dtype: torch.dtype
) -> None:
    # The last step of both has no length, but for the rounding of a logarithm, in which the reference's h is nothing.
    assume(spaced != "use_lu_lambdas" or config["final_sigmas_type"] == "zero")
    config = parity.with_spacing(config, spaced)
    ours, theirs = DPMpp2M(**config), DPMSolverMultistepScheduler(**config)
    if parity.place(ours, theirs, steps):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), rel=2e-6)
        parity.walk(ours, theirs, dtype=dtype, broken=lambda index: leads_nowhere(ours, index))


@settings(max_examples=15, deadline=None)
@given(parity.grid(), st.integers(2, 20), st.integers(1, 3))
def test_given_timesteps_and_skipped_steps(config: dict[str, Any], steps: int, skip: int) -> None:
    ours, theirs = DPMpp2M(**config), DPMSolverMultistepScheduler(**config)
    if parity.place(ours, theirs, steps):
        ours.set_timesteps(steps, skip=min(skip, steps - 1))
        parity.walk(ours, theirs, skip=min(skip, steps - 1))
    given_ones = [90, 41, 40, 3]
    ours.set_timesteps(4, timesteps=given_ones)
    theirs.set_timesteps(timesteps=given_ones)
    parity.walk(ours, theirs, tolerance=1e-5)  # after a short step the reference's logarithms in float32 show


@settings(max_examples=60, deadline=None)
@given(OPTIONS, st.integers(2, 40), st.sampled_from([-8.0, -5.1, -3.0, 0.5]), st.booleans())
def test_clipped_lambdas(config: dict[str, Any], steps: int, lowest: float, stochastic: bool) -> None:
    config = config | {"lambda_min_clipped": lowest}
    if stochastic:
        config |= {"algorithm_type": "sde-dpmsolver++"}
    ours, theirs = DPMpp2M(**config), DPMSolverMultistepScheduler(**config)
    count = config["num_train_timesteps"]
    if config["timestep_spacing"] == "trailing":  # rounding can leave a 0 at the end, and -1 of it
        assume((np.arange(ours.reached_timesteps, 0, -count / steps).round() > 0).all())
    if parity.place(ours, theirs, steps):
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        dtype = torch.float64 if steps % 2 else torch.float32
        parity.walk(ours, theirs, dtype=dtype, tolerance=5e-6, broken=lambda index: leads_nowhere(ours, index))


SDE = "sde-dpmsolver++"
PUBLISHED: dict[str, dict[str, Any]] = {
    "first order": {"solver_order": 1},
    "third order": {"solver_order": 3},
    "SDE": {"algorithm_type": SDE},
    "SDE, Karras, Heun": {"algorithm_type": SDE, "use_karras_sigmas": True, "solver_type": "heun"},
    "SDE, third order": {"algorithm_type": SDE, "solver_order": 3},
    "Lu": {"use_lu_lambdas": True},
    "Lu, SDE, third order": {"use_lu_lambdas": True, "algorithm_type": SDE, "solver_order": 3},
    "cosine, clipped": {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -3.0},
    "cosine, clipped, SDE, trailing": {
        "beta_schedule": "squaredcos_cap_v2",
        "lambda_min_clipped": -3.0,
        "algorithm_type": SDE,
        "timestep_spacing": "trailing",
    },
    "to the smallest sigma": {"final_sigmas_type": "sigma_min", "solver_order": 3},
    "of DEIS": {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_pictures_of_published_settings(tmp_path: Path, case: str, small_checkpoint: Callable[..., Path]) -> None:
    folder = shutil.copytree(small_checkpoint(), tmp_path / "checkpoint")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | PUBLISHED[case]))
    parity.pictures(folder, tmp_path, "dpmpp_2m", DPMSolverMultistepScheduler, {}, steps=6)


@pytest.mark.parametrize("name", ["use_lu_lambdas", "solver_order", "algorithm_type", "lambda_min_clipped"])
def test_wrong_values_are_refused(name: str) -> None:
    for value in (4, "three", [1]):
        with pytest.raises(ConfigError, match=f"scheduler.{name}=.* should be"):
            build_sampler({**TARGET, name: [value] if name == "lambda_min_clipped" else value}, parity.SD)


@pytest.mark.parametrize("name", ["use_lu_lambdas", "use_karras_sigmas", "use_beta_sigmas"])
def test_given_timesteps_and_spaced_sigmas_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"timesteps are given and scheduler.{name} is true"):
        DPMpp2M(**{name: True}).set_timesteps(2, timesteps=[500, 1])
    with pytest.raises(ConfigError, match="are both true"):
        DPMpp2M(**{name: True, "use_exponential_sigmas": True})


def test_clipping_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves nothing"):
        DPMpp2M(lambda_min_clipped=20.0)
    sampler = DPMpp2M(lambda_min_clipped=0.0, timestep_spacing="trailing")
    sampler.set_timesteps(10)
    left = len(sampler.timesteps)
    assert 0 < left < 10
    sampler.set_timesteps(10, skip=left - 1)
    with pytest.raises(ConfigError, match=f"leaves {left}, and strength skips {left}; raise strength"):
        sampler.set_timesteps(10, skip=left)


@pytest.mark.parametrize(
    "changes", [{}, {"use_karras_sigmas": True}, {"use_beta_sigmas": True, "final_sigmas_type": "sigma_min"}], ids=str
)
def test_pictures(small_checkpoint: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = small_checkpoint(scheduler={"rescale_betas_zero_snr": not changes})
    parity.pictures(folder, tmp_path, "dpmpp_2m", DPMSolverMultistepScheduler, changes, steps=5)


def test_the_solver_type_of_another_sampler_is_not_taken() -> None:
    assert build_sampler(TARGET, {**parity.SD, "solver_type": "bh2"}).solver_type == "midpoint"
    assert build_sampler(TARGET, {**parity.SD, "solver_type": "heun"}).solver_type == "heun"
    with pytest.raises(ConfigError, match="solver_type=bh2: should be one of midpoint, heun"):
        build_sampler({**TARGET, "solver_type": "bh2"}, parity.SD)


def test_no_signal_and_no_room_are_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no signal"):
        DPMpp2M(rescale_betas_zero_snr=True)
    with pytest.raises(ConfigError, match="visited twice; take fewer steps"):
        DPMpp2M().set_timesteps(1000)
