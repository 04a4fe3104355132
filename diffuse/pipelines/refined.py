"""Two stages: a model denoises as far as it was trained best, and another goes on from there to the picture (Podell et
al., "SDXL", 2023, section 2.5; Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
Denoisers", 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.memory import Memory
from diffuse.errors import CheckpointError, ConfigError
from diffuse.pipelines.latent_diffusion import LatentPipeline, joined
from diffuse.sampling.batches import Clock, Steps, split
from diffuse.sampling.denoise import Sampler, Walk
from diffuse.sampling.results import Made, Step
from diffuse.sampling.start import Begun, FromNoise, Generators
from diffuse.schedulers.sampler import State
from diffuse.schema import GenerationRequest

_OF_PICTURES = frozenset({"input_image", "mask_image", "strength", "resize", "keep_unmasked"})


def request_fields(families: Sequence[type[LatentPipeline]]) -> frozenset[str]:
    """The fields that one model knows, or two together. Those start from noise: a refiner refines a picture alone."""
    known = frozenset().union(*(family.request_fields for family in families))
    return known if len(families) == 1 else (known | {"denoising_end"}) - _OF_PICTURES


def staged(families: Sequence[type[LatentPipeline]], checkpoints: Sequence[Checkpoint], memory: Memory) -> Any:
    """The pipeline of one model, or of a model and its refiner."""
    base = families[0](checkpoints[0], memory)
    return base if len(families) == 1 else Refined(base, families[1](checkpoints[1], memory.beside("refiner")))


class Relay(NamedTuple):
    """The samplers of both stages: the second begins with step `step`, before which the first calls the model
    `calls` times."""

    first: Sampler
    second: Sampler
    step: int
    calls: int


class Refined:
    """A base and its refiner, which share one memory.

    Raises:
        CheckpointError: the latents of one are not those of the other.
    """

    def __init__(self, base: LatentPipeline, refiner: LatentPipeline) -> None:
        self.base, self.refiner, self.memory = base, refiner, base.memory
        for name in ("latent_channels", "factor", "scaling_factor", "shift_factor"):
            ours, theirs = getattr(base.vae_config, name), getattr(refiner.vae_config, name)
            if ours != theirs:
                raise CheckpointError(
                    f"{refiner.checkpoint.source}: cannot refine {base.checkpoint.source}: the {name} of its vae is "
                    f"{theirs} and should be {ours}; choose a refiner that was made for it"
                )

    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels that the base was trained at."""
        return self.base.default_size()

    def latent_shape(self, request: GenerationRequest, given: Tensor | None = None) -> tuple[int, int, int]:
        """See `LatentPipeline`; both have the same."""
        return self.base.latent_shape(request, given)

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the fields of both filled where they were left open."""
        return self.refiner.complete(self.base.complete(request))

    def check(self, request: GenerationRequest) -> None:
        """Refuses what only the checkpoints' own configurations show to be wrong."""
        self.base.check(request)

    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> Relay:
        """The samplers that `options` names, each with its checkpoint's published settings, and where they meet.

        Raises:
            ConfigError: `denoising_end` leaves one of the two without a step.
        """
        first, second = self.base.scheduler(options), self.refiner.scheduler(options)
        count, end = request.num_inference_steps, request.denoising_end
        assert end is not None
        left = round(first.num_train_timesteps * (1 - end))  # timesteps below this one are the refiner's
        first.set_timesteps(count, request.timesteps)
        calls = len(first.timesteps)
        for step in range(count):
            second.set_timesteps(count, request.timesteps, skip=step)
            if float(second.timesteps[0]) < left:
                break
        else:
            step = count
        if step in (0, count):
            who = "the model" if step == 0 else "the refiner"
            raise ConfigError(
                f"denoising_end={end:g}: leaves {who} none of num_inference_steps={count}; "
                f"{'raise' if step == 0 else 'lower'} it, or take more steps"
            )
        return Relay(first, second, step, calls - len(second.timesteps))

    @torch.inference_mode()
    def __call__(
        self,
        request: GenerationRequest,
        relay: Relay,
        *,
        latents: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Made:
        """Makes the request's pictures.

        Args:
            relay: what `plan` gave.
            latents, seeds, on_step: see `LatentPipeline`.

        Raises:
            ConfigError: the latents' shape does not fit the request.
            RunError: a component gave NaN, or the device ran out of memory.
        """
        self.memory.start()
        clock = Clock(self.memory)
        shape = self.base.latent_shape(request, latents)
        relay.first.set_timesteps(request.num_inference_steps, request.timesteps)
        relay.second.set_timesteps(request.num_inference_steps, request.timesteps, skip=relay.step)
        seeds = request.seeds if seeds is None else seeds
        batches = split(len(seeds), self.memory.together(request.width, request.height))
        generators = [[torch.Generator("cpu").manual_seed(seeds[i]) for i in batch] for batch in batches]
        steps = Steps((relay.calls + len(relay.second.timesteps)) * len(batches), on_step)

        # 1. The prompts become the conditioning of both denoisers.
        with clock.phase("encode_s"):
            early, cut = self.base.guidance(request)
            late, _ = self.refiner.guidance(request)

        # 2. Noise becomes latents with some noise left in them; all of them, so that the denoisers change places once.
        half_way = []
        for batch, own in zip(batches, generators, strict=True):
            noise = None if latents is None else latents[batch.start : batch.stop].float()
            begun = FromNoise(shape).begin(relay.first, own, noise)
            begun = begun._replace(walk=_Until(begun.walk, relay.calls))
            with clock.phase("denoise_s"):
                half_way.append(self.base.denoise_batch(begun, early, own, steps))

        # 3. The refiner takes away the rest.
        with clock.phase("denoise_s"):
            denoised = [
                self.refiner.denoise_batch(Begun(batch, relay.second), late, own, steps)
                for batch, own in zip(half_way, generators, strict=True)
            ]

        # 4. Latents become pixels.
        with clock.phase("decode_s"):
            images: np.ndarray = self.refiner.decode(denoised)
        return Made(images, clock.timings(), steps.seconds, self.memory.peaks(), joined(denoised), cut)


class _Until:
    """The first `calls` calls of a walk."""

    def __init__(self, walk: Walk, calls: int) -> None:
        self.timesteps = walk.timesteps[:calls]
        self.scale_model_input = walk.scale_model_input
        self.walk = walk

    def step(self, model_output: Tensor, index: int, state: State, generators: Generators | None) -> State:
        return self.walk.step(model_output, index, state, generators)
