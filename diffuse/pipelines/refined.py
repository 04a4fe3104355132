"""Two stages: a model denoises as far as it was trained best, and another goes on from there to the image (Podell et
al., "SDXL", 2023, section 2.5; Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
Denoisers", 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.embedding.locate_embedding import NamedEmbedding
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.device.memory import Memory
from diffuse.device.patches import Patch
from diffuse.errors import CheckpointError, ConfigError
from diffuse.pipelines.components import Role
from diffuse.pipelines.latent_diffusion import LatentDiffusion
from diffuse.pipelines.learned_words import Words
from diffuse.pipelines.pipeline import DiffusionPipeline, ModelPipeline, Stage
from diffuse.sampling.denoise import Sampler, set_timesteps
from diffuse.sampling.prompt_embeddings import PromptEmbeddings
from diffuse.sampling.results import DecodedMedia
from diffuse.sampling.start import FromLatents, FromNoise, UntilCall
from diffuse.schema import INPUT_FIELDS, GenerationRequest
from diffuse.text_backends.backend import TextBackend

_DENOISERS = ("unet", "transformer")


def request_fields(families: Sequence[type[ModelPipeline]]) -> frozenset[str]:
    """Returns the request fields that one model knows, or two together, which start from noise alone."""
    known = frozenset({"fit"}).union(*(family.request_fields for family in families))
    return known if len(families) == 1 else (known | {"denoising_end"}) - set(INPUT_FIELDS)


def build_pipeline(
    families: Sequence[type[ModelPipeline]],
    checkpoints: Sequence[Checkpoint],
    memory: Memory,
    text_backend: TextBackend | None = None,
) -> DiffusionPipeline:
    """Builds the pipeline of one model, or of a model and its refiner.

    Args:
        text_backend: encodes in place of the model's own text encoder.

    Raises:
        CheckpointError: the parts do not fit together.
        ConfigError: a model that has no refiner is given one.
    """
    for family in families:
        if len(families) > 1 and not issubclass(family, LatentDiffusion):
            raise ConfigError(f"refiner: {family.__name__} neither has one nor is one; leave the refiner out")
    for family, checkpoint in zip(families, checkpoints, strict=True):
        _check_denoiser(family, checkpoint)
    if len(families) == 1:
        others = {} if text_backend is None else {"text_backend": text_backend}
        return families[0](checkpoints[0], memory, **others)
    base, refiner = families[0](checkpoints[0], memory), families[1](checkpoints[1], memory.with_prefix("refiner"))
    assert isinstance(base, LatentDiffusion) and isinstance(refiner, LatentDiffusion)
    return RefinedPipeline(base, refiner)


class Relay(NamedTuple):
    """The samplers of both stages: the second begins with step `step`, before which the first calls its denoiser
    `calls` times."""

    first: Sampler
    second: Sampler
    step: int
    calls: int


def _check_denoiser(family: type[ModelPipeline], checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that has another kind of denoiser: what else it lacks is of no interest."""
    own = next(name for name, part in family.components.items() if part.role is Role.denoiser)
    has = {name for name in _DENOISERS if any(checkpoint.index.get(name) or ())} | checkpoint.parts.keys()
    if own not in has and (other := next((name for name in _DENOISERS if name in has), None)):
        hint = f"a refiner with a {own}" if checkpoint.setting == "refiner" else "model=auto, which finds the family"
        raise CheckpointError(
            f"{checkpoint.source}: has a {other} and no {own}: it is of another family; choose {hint}"
        )


class RefinedPipeline(DiffusionPipeline):
    """A base and its refiner, which share one memory.

    Raises:
        CheckpointError: the latents of one are not those of the other.
    """

    def __init__(self, base: LatentDiffusion, refiner: LatentDiffusion) -> None:
        self.base, self.refiner, self.memory = base, refiner, base.memory
        for name in ("latent_channels", "factor", "scaling_factor", "shift_factor", "latents_mean", "latents_std"):
            ours, theirs = getattr(base.vae_config, name), getattr(refiner.vae_config, name)
            if ours != theirs:
                raise CheckpointError(
                    f"{refiner.checkpoint.source}: cannot refine {base.checkpoint.source}: the {name} of its vae is "
                    f"{theirs} and should be {ours}; choose a refiner that was made for it"
                )

    def default_size(self) -> tuple[int, int] | None:
        """See `DiffusionPipeline`."""
        return self.base.default_size()

    def latent_shape(self, request: GenerationRequest, latents: Tensor | None = None) -> tuple[int, ...]:
        """Returns the shape `[C, h, w]` of one image's latents, which both models have."""
        return self.base.latent_shape(request, latents)

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Returns the request with the fields of both models filled where they were left open."""
        return self.refiner.complete(self.base.complete(request))

    def check(self, request: GenerationRequest) -> None:
        """See `DiffusionPipeline`."""
        self.base.check(request)

    def check_prompt_embeddings(self, request: GenerationRequest, embeddings: PromptEmbeddings) -> None:
        """Refuses them: the refiner has another text encoder, and would need others."""
        raise ConfigError(
            "prompt_embeds: a refiner encodes the prompt by itself; leave the refiner out, or give a prompt"
        )

    def patches(self, loras: Sequence[NamedLora]) -> Mapping[str, Patch]:
        """Returns what LoRA files put on the weights of the base: they are made for it."""
        return self.base.patches(loras)

    def learn_words(self, embeddings: Sequence[NamedEmbedding]) -> tuple[Mapping[str, Words], Mapping[str, Words]]:
        """Returns the words of the base and of the refiner, whose text encoder is the base's second one."""
        return self.base.learn_words(embeddings), self.refiner.learn_words(embeddings, strict=False)

    def use_words(self, words: tuple[Mapping[str, Words], Mapping[str, Words]]) -> None:
        """See `DiffusionPipeline`."""
        self.base.use_words(words[0])
        self.refiner.use_words(words[1])

    def embed_prompts(self, request: GenerationRequest) -> PromptEmbeddings:
        """Refuses to; see `check_prompt_embeddings`."""
        raise ConfigError("encode(): a refiner encodes the prompt by itself; leave the refiner out")

    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> Relay:
        """Returns the samplers that `options` name, each with its checkpoint's published settings, and where they meet.

        Raises:
            ConfigError: `denoising_end` leaves one of the two without a step.
        """
        first, second = self.base.scheduler(options), self.refiner.scheduler(options)
        count, end = request.num_inference_steps, request.denoising_end
        assert end is not None
        limit = round(first.num_train_timesteps * (1 - end))  # timesteps below this one are the refiner's
        set_timesteps(first, request)
        calls = len(first.timesteps)
        for step in range(count):
            set_timesteps(second, request, skip=step)
            if float(second.timesteps[0]) < limit:
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

    def stages(
        self,
        request: GenerationRequest,
        samplers: Any,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        embeddings: PromptEmbeddings | None = None,
        last_image: np.ndarray | None = None,
    ) -> tuple[list[Stage], list[str]]:
        """Returns two stages: from noise to latents `[B, C, h, w]` with some noise left, and from there to the end.

        There is no `image` `[H, W, 3]`, `mask`, `last_image` or `embeddings`: a refiner refines the base's images.
        """
        relay: Relay = samplers
        set_timesteps(relay.first, request)
        set_timesteps(relay.second, request, skip=relay.step)
        base_guidance, warnings = self.base.guidance(request)
        refiner_guidance, _ = self.refiner.guidance(request)
        start = UntilCall(FromNoise(self.latent_shape(request)), relay.calls)
        calls = len(relay.second.timesteps)
        notes = [*self.base.notes(request, relay.first), *self.refiner.notes(request, relay.second)]
        return [
            Stage(start, relay.first, relay.calls, base_guidance, self.base.denoise_batch),
            Stage(FromLatents(), relay.second, calls, refiner_guidance, self.refiner.denoise_batch),
        ], [*dict.fromkeys(notes), *warnings]

    def decode(self, batches: Sequence[Tensor], request: GenerationRequest) -> DecodedMedia:
        """Decodes the latents `[B, C, h, w]` of every batch to images, frames `[N, 1, H, W, 3]`."""
        return self.refiner.decode(batches, request)

    def name_latents(self, latents: Tensor, request: GenerationRequest) -> dict[str, Tensor]:
        """See `DiffusionPipeline`."""
        return self.refiner.name_latents(latents, request)
