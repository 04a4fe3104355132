"""The denoising loop, for any denoiser and any sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from diffuse.errors import ConfigError, RunError
from diffuse.sampling.guidance import Denoiser, Guidance
from diffuse.schedulers.build import samplers_of_sigmas
from diffuse.schedulers.sampler import State
from diffuse.schema import GenerationRequest


class Stepper(Protocol):
    """Steps of a sampler, as the loop takes them. `timesteps` has one entry for each call of the denoiser, and `index`
    counts those calls."""

    timesteps: Tensor

    def scale_model_input(self, sample: Tensor, index: int) -> Tensor: ...
    def step(
        self, model_output: Tensor, index: int, state: State, generators: Sequence[torch.Generator] | None
    ) -> State: ...


class Sampler(Stepper, Protocol):
    """A sampler as a pipeline uses it; see `diffuse.schedulers`.

    `set_timesteps` chooses the timesteps, or takes those given, and leaves out the first `skip` steps: image-to-image
    starts there. A step may need several calls of the denoiser.
    """

    num_train_timesteps: int
    label: ClassVar[str]  # the name that picture viewers know
    predictions: ClassVar[tuple[str, ...]]  # what the model may predict
    takes_sigmas: ClassVar[bool]  # as the argument `sigmas` of `set_timesteps`

    @property
    def init_noise_sigma(self) -> float: ...
    def set_timesteps(
        self, num_inference_steps: int, timesteps: Sequence[int] | None = None, *, skip: int = 0
    ) -> None: ...
    def add_noise(self, original: Tensor, noise: Tensor, index: int) -> Tensor: ...


def set_timesteps(sampler: Sampler, request: GenerationRequest, *, skip: int = 0) -> None:
    """Chooses the steps that a request asks for, without the first `skip`, or takes the timesteps or sigmas it gives.

    Raises:
        ConfigError: the sampler does not take them.
    """
    if request.sigmas is None:
        sampler.set_timesteps(request.num_inference_steps, request.timesteps, skip=skip)
    elif sampler.takes_sigmas:
        visit: Any = sampler.set_timesteps  # which has one more argument there
        visit(request.num_inference_steps, sigmas=request.sigmas, skip=skip)
    else:
        others = "|".join(samplers_of_sigmas(sampler.predictions))
        raise ConfigError(f"sigmas: {sampler.label} visits timesteps; give timesteps, or add scheduler={others}")


def initial_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Draws unit noise `[B, *shape]` in float32 on the CPU, one result from each generator.

    So a seed gives the same noise in any batch and for any device.
    """
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


@dataclass
class ReachedStep:
    """How far a batch is denoised; from here it goes on where a step was broken off."""

    state: State
    index: int = 0  # of the next call of the denoiser
    drawn: list[Tensor] | None = None  # the generators' states before that call; None before the first


def denoise(
    model: Denoiser,
    stepper: Stepper,
    reached: ReachedStep,
    guidance: Callable[[], Guidance],
    generators: Sequence[torch.Generator],
    *,
    dtype: torch.dtype,
    after_step: Callable[[int, float, float, State], None],
    input_dtype: torch.dtype | None = None,
) -> Tensor:
    """Denoises latents `[B, ...]` from the step that is reached to the stepper's last, and returns them.

    The state stays in float32; only the model computes in `dtype`.

    Args:
        reached: updated after each step, so that a call with the same one goes on where this one was broken off.
        guidance: returns the guidance for the step that begins.
        after_step: called with the step's index, its timestep, its seconds and the state after it.
        input_dtype: in which guidance is given the latents, where that is not `dtype`.

    Raises:
        RunError: the result is not finite.
    """
    for generator, drawn in zip(generators, reached.drawn or (), strict=False):
        generator.set_state(drawn)
    for index in range(reached.index, len(stepper.timesteps)):
        timestep = stepper.timesteps[index]
        reached.drawn = [generator.get_state() for generator in generators]
        start = time.perf_counter()
        model_input = stepper.scale_model_input(reached.state.sample, index).to(input_dtype or dtype)
        prediction = guidance().predict(model, model_input, timestep).float()
        state = stepper.step(prediction, index, reached.state, generators)
        reached.state, reached.index, reached.drawn = state, index + 1, None
        after_step(index, float(timestep), time.perf_counter() - start, state)
    require_finite(reached.state.sample, "denoiser", dtype)
    return reached.state.sample


def require_finite(x: Tensor, component: str, dtype: torch.dtype) -> None:
    """Raises `RunError` where `x` holds NaN or infinity: a black image must never pass for a result."""
    if not bool(torch.isfinite(x).all()):
        advice = (
            "its weights or the request's numbers leave the range of float32"
            if dtype == torch.float32
            else "run again with hardware.dtype=float32, or bfloat16"
        )
        name = str(dtype).removeprefix("torch.")
        raise RunError(f"the {component} gave NaN or infinity in {name}: {advice}")
