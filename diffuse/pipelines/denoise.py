"""The denoising loop and classifier-free guidance, for any denoiser and any sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffuse.errors import RunError
from diffuse.schedulers.sampler import State

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, timestep, text states -> prediction


class Sampler(Protocol):
    """What the loop asks of a sampler; see `diffuse.schedulers`.

    `set_timesteps` leaves out the first `skip` steps: image-to-image starts there. `timesteps` then has one entry for
    each call of the model, of which a step may need several, and `index` counts those calls.
    """

    timesteps: Tensor

    @property
    def init_noise_sigma(self) -> float: ...
    def set_timesteps(self, num_inference_steps: int, *, skip: int = 0) -> None: ...
    def scale_model_input(self, sample: Tensor, index: int) -> Tensor: ...
    def step(
        self, model_output: Tensor, index: int, state: State, generators: Sequence[torch.Generator] | None
    ) -> State: ...
    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor: ...


class Guidance(NamedTuple):
    """Text states `[1, T, D]` and how far to go from the negative towards the positive.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022.
    """

    positive: Tensor
    negative: Tensor | None  # None: guidance would change nothing
    scale: float
    batched: bool  # both in one call of the model, or one after the other with half the memory

    def predict(self, model: Predict, latents: Tensor, timestep: Tensor) -> Tensor:
        """The guided prediction for latents `[B, C, h, w]`, in the model's precision."""
        size = len(latents)
        if self.negative is None:
            return model(latents, timestep, _repeat(self.positive, size))
        if self.batched:
            text = torch.cat([_repeat(self.negative, size), _repeat(self.positive, size)])
            negative, positive = model(torch.cat([latents, latents]), timestep, text).chunk(2)
        else:
            negative = model(latents, timestep, _repeat(self.negative, size))
            positive = model(latents, timestep, _repeat(self.positive, size))
        return negative + self.scale * (positive - negative)


def initial_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise `[B, *shape]`: each image's own, from its CPU generator in float32, whatever the batch or device."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


def denoise(
    model: Predict,
    scheduler: Sampler,
    latents: Tensor,
    guidance: Guidance,
    generators: Sequence[torch.Generator],
    *,
    dtype: torch.dtype,
    after_step: Callable[[int, float, float], None],
) -> Tensor:
    """Latents `[B, C, h, w]` at the scheduler's first timestep -> latents without noise.

    The state stays in float32; only the model computes in `dtype`. `after_step` is told the step's index, timestep
    and seconds.

    Raises:
        RunError: the result is not finite.
    """
    state = State(latents)
    for index, timestep in enumerate(scheduler.timesteps):
        start = time.perf_counter()
        shown = scheduler.scale_model_input(state.sample, index).to(dtype)
        prediction = guidance.predict(model, shown, timestep).float()
        state = scheduler.step(prediction, index, state, generators)
        after_step(index, float(timestep), time.perf_counter() - start)
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


def _repeat(text: Tensor, size: int) -> Tensor:
    return text.expand(size, *text.shape[1:])  # [size, T, D]
