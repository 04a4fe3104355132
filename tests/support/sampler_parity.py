"""Walks a sampler and its counterpart in diffusers side by side, and makes pictures with both."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import command
import numpy as np
import oracle
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from diffuse.errors import ConfigError
from diffuse.schedulers import options
from diffuse.schedulers.sampler import State

SHAPE = (2, 3, 4, 4)
# What the published configurations of Stable Diffusion 1.x and 2.x and of SDXL have.
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = tuple(name for name in options.SPACINGS if name != "simple")  # those of diffusers
SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def grid(**more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Options that samplers have in common, with `more`; None leaves one out."""
    common: dict[str, st.SearchStrategy[Any]] = {
        "num_train_timesteps": st.sampled_from([100, 1000]),
        "beta_start": st.sampled_from([0.0001, 0.00085]),
        "beta_end": st.sampled_from([0.012, 0.02]),
        "beta_schedule": st.sampled_from(options.BETA_SCHEDULES),
        "prediction_type": st.sampled_from(options.PREDICTIONS),
        "timestep_spacing": st.sampled_from(SPACINGS),
        "steps_offset": st.sampled_from([0, 1]),
    }
    return st.fixed_dictionaries({name: values for name, values in (common | more).items() if values is not None})


def has_signal(config: dict[str, Any]) -> bool:
    """False for what is refused: noise predicted from a sample that is nothing but noise."""
    return not (config["rescale_betas_zero_snr"] and config["prediction_type"] == "epsilon")


def spaced() -> st.SearchStrategy[str | None]:
    """Sigmas at the timesteps, or the option that spaces them for themselves."""
    return st.sampled_from([None, *SPACED])


def with_spacing(config: dict[str, Any], spaced: str | None) -> dict[str, Any]:
    return config if spaced is None else config | {spaced: True}


def reference(kind: Any, **config: Any) -> Any:
    """A scheduler of diffusers' that some make with a thousand steps at first, which takes a second and nobody uses."""

    def leave_out(self: Any, *rest: Any, **options: Any) -> None:
        self.sigmas = torch.zeros(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "set_timesteps", leave_out)
        return kind(**config)


def place(ours: Any, theirs: Any, steps: int) -> bool:
    """Calls `set_timesteps` on both, and says whether they can be compared: ours refuses what the reference does
    wrongly."""
    theirs.set_timesteps(steps)
    try:
        ours.set_timesteps(steps)
    except ConfigError as error:
        assert any(reason in str(error) for reason in ("steps_offset", "twice", "should fall")), error
        return False
    # Rounding can give the reference one timestep too many under trailing, -1: for 61 steps of 1000, and for 29 of 100.
    count = theirs.config.num_train_timesteps
    one_more = len(np.arange(count, 0, -count / steps)) > steps
    return not (one_more and theirs.config.timestep_spacing == "trailing")


def small(**changes: Any) -> oracle.Variant:
    """The quickest checkpoint to make a picture with."""
    return oracle.Variant(channels=(16, 32), heads=2, cross=(True, True), vae_channels=(8, 8, 16), **changes)


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(5, 5 + count)]


def model(shown: torch.Tensor, timestep: float) -> torch.Tensor:
    """Stands for a denoiser: any function of the two that is not linear."""
    return torch.tanh(shown * 0.7 + timestep / 500) + 0.1 * shown


def unit_noise(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def walk(
    ours: Any,
    theirs: Any,
    *,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-6,
    skip: int = 0,
    broken: Callable[[int], bool] = lambda index: False,
) -> None:
    """Every step of both, from one state on one prediction; `set_timesteps` has been called, ours with `skip`.

    `tolerance` is in units of the largest value that the step has to do with, or of 1 if that is larger. `broken` says
    in which steps the reference may give NaN.
    """
    skipped = skip * ours.calls_per_step
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(skipped)
    mine, reference = generators(), generators()
    stochastic = {"generator": reference} if "generator" in inspect.signature(theirs.step).parameters else {}
    original, noise = unit_noise(dtype, 1), unit_noise(dtype)
    state = State(ours.add_noise(original, noise, 0) if skip else noise * ours.init_noise_sigma)
    other = (
        theirs.add_noise(original, noise, theirs.timesteps[skipped][None]) if skip else noise * theirs.init_noise_sigma
    )
    close(state.sample, other, tolerance, "start")
    for index, (t, their_t) in enumerate(zip(ours.timesteps, theirs.timesteps[skipped:], strict=True)):
        assert float(t) == pytest.approx(float(their_t), rel=1e-5, abs=1e-4)
        shown = ours.scale_model_input(state.sample, index)
        close(shown, theirs.scale_model_input(state.sample, their_t), tolerance, f"shown at {index}")
        prediction = model(shown, float(t))
        before = state.sample
        try:
            stepped = theirs.step(prediction, their_t, before, **stochastic)
        except torch.linalg.LinAlgError:  # of equations that hold infinities
            stepped = {"prev_sample": torch.full_like(before, torch.nan)}
        state = ours.step(prediction, index, state, mine)
        clean = state.denoised()
        size = tolerance * max(1.0, float(before.abs().max()), float(clean.abs().max()))
        if not torch.isfinite(stepped["prev_sample"]).all():
            assert broken(index), f"the reference gives NaN in step {index}"
            close(state.sample, state.sample, size, f"step {index}")  # ours does not
            continue
        close(state.sample, stepped["prev_sample"], size, f"step {index}")
        seen = stepped.get("pred_original_sample", stepped.get("denoised"))
        if seen is not None:
            close(clean, seen, size, f"original at {index}")


@contextmanager
def noise_in_float32(reference: ModuleType) -> Iterator[None]:
    """Lets a module of the reference draw noise in float32, as ours does, whatever it computes in."""
    drawn = reference.randn_tensor

    def draw(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None) -> Any:
        return drawn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "randn_tensor", draw)
        yield


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float, where: str) -> None:
    assert torch.isfinite(a).all(), where
    difference = float((a - b).abs().max()) / max(1.0, float(a.abs().max())) / tolerance
    assert difference <= 1, f"{where}: {difference} times the tolerance"


def pictures(
    folder: Path, out: Path, sampler: str, theirs: Any, changes: dict[str, Any], steps: int = 4, **theirs_alone: Any
) -> None:
    """What `diffuse scheduler=SAMPLER` makes of a checkpoint is within one level in 255 of what diffusers makes.

    `theirs` is the class in diffusers, made from the checkpoint's published configuration and these `changes`.
    """
    request = {"prompt": "the cat and the rocket", "width": 64, "height": 64, "num_inference_steps": steps}
    request |= {"guidance_scale": 5.0}
    done = command.diffuse(
        *("model=sd21", f"model.source={folder}", f"scheduler={sampler}", "seed=3", "num_images=2"),
        *(f"scheduler.{name}={value}" for name, value in changes.items()),
        *(f"{name}={value}" for name, value in request.items()),
        *(f"output.dir={out}", "hardware=cpu", "hardware.threads=1", "tracking=none"),
        cwd=out,
    )
    assert done.status == 0, done.err
    ours = np.stack([np.asarray(Image.open(out / path)) for path in done.paths])
    published = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    reference = theirs.from_config(published, **changes, **theirs_alone)
    expected = oracle.picture(folder, seed=[3, 4], scheduler=reference, **request)
    assert expected.std() > 20
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1
