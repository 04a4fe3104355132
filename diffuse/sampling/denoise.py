"""The denoising loop, for any denoiser and any sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffuse.errors import RunError
from diffuse.sampling.guidance import Guidance, Predict
from diffuse.schedulers.sampler import State


class Walk(Protocol):
    """What the loop goes along: `timesteps` has one entry for each call of the model, and `index` counts those."""

    timesteps: Tensor

    def scale_model_input(self, sample: Tensor, index: int) -> Tensor: ...
    def step(
        self, model_output: Tensor, index: int, state: State, generators: Sequence[torch.Generator] | None
    ) -> State: ...


class Sampler(Walk, Protocol):
    """What a pipeline asks of a sampler; see `diffuse.schedulers`.

    `set_timesteps` chooses the timesteps, or takes those given, and leaves out the first `skip` steps: image-to-image
    starts there. A step may need several calls of the
    model.
    """

    num_train_timesteps: int

    @property
    def init_noise_sigma(self) -> float: ...
    def set_timesteps(
        self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0
    ) -> None: ...
    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor: ...


def initial_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise `[B, *shape]`: each image's own, from its CPU generator in float32, whatever the batch or device."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


def denoise(
    model: Predict,
    walk: Walk,
    latents: Tensor,
    guidance: Guidance,
    generators: Sequence[torch.Generator],
    *,
    dtype: torch.dtype,
    after_step: Callable[[int, float, float, State], None],
) -> Tensor:
    """Latents `[B, C, h, w]` at the walk's first timestep -> latents without noise.

    The state stays in float32; only the model computes in `dtype`. `after_step` is told the step's index, timestep
    and seconds, and where it led.

    Raises:
        RunError: the result is not finite.
    """
    state = State(latents)
    for index, timestep in enumerate(walk.timesteps):
        start = time.perf_counter()
        shown = walk.scale_model_input(state.sample, index).to(dtype)
        prediction = guidance.predict(model, shown, timestep).float()
        state = walk.step(prediction, index, state, generators)
        after_step(index, float(timestep), time.perf_counter() - start, state)
    require_finite(state.sample, "denoiser", dtype)
    return state.sample


def require_finite(x: Tensor, component: str, dtype: torch.dtype) -> None:
    """Raises `RunError` where `x` holds NaN or infinity: a black picture must never pass for a result."""
    if not bool(torch.isfinite(x).all()):
        advice = (
            "its weights or the request's numbers leave the range of float32"
            if dtype == torch.float32
            else "run again with hardware.dtype=float32, or bfloat16"
        )
        name = str(dtype).removeprefix("torch.")
        raise RunError(f"the {component} gave NaN or infinity in {name}: {advice}")
