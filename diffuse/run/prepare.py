"""Brings together what a run needs, and checks that the parts fit, before a weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.checkpoint import Checkpoint, checkpoint_record
from diffuse.checkpoints.embedding.locate_embedding import NamedEmbedding, embedding_record, open_embeddings
from diffuse.checkpoints.lora.locate_lora import NamedLora, lora_record, open_loras
from diffuse.checkpoints.model_sources import locate_models
from diffuse.config import objective
from diffuse.config.checks import check_known_fields
from diffuse.config.inputs import Inputs
from diffuse.config.mistakes import name_own_places
from diffuse.config.request import RequestDraft
from diffuse.device.patches import Patch
from diffuse.device.size_limits import Shrunk
from diffuse.media.save import output_notes
from diffuse.pipelines.families import choose_output_format, component_names, load_family, models
from diffuse.pipelines.refined import request_fields
from diffuse.run.open import OpenPipeline, open_pipeline
from diffuse.schedulers.labels import schedule_settings
from diffuse.schedulers.sigmas import unused_ends_note
from diffuse.schema import PROMPT_FIELDS, GenerationRequest

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse.sampling.prompt_embeddings import PromptEmbeddings


@dataclass(frozen=True)
class PreparedRun:
    """A request with all that is needed to run it."""

    cfg: DictConfig
    request: GenerationRequest
    opened: OpenPipeline
    samplers: Any  # the pipeline's plan
    inputs: Inputs | None = None
    latents: Tensor | None = None  # initial noise `[N, ...]`, where it is given
    embeddings: PromptEmbeddings | None = None  # in place of the prompts
    reference: objective.Reference | None = None  # what quality is measured against
    loras: Sequence[NamedLora] = ()
    patches: Mapping[str, Patch] = field(default_factory=dict)  # what the LoRA files put on, by component
    shrunk: Shrunk | None = None  # what was asked for, where it was larger
    learned: Sequence[NamedEmbedding] = ()  # textual inversions
    words: Any = None  # what they add, see `DiffusionPipeline.learn_words`

    @property
    def weights(self) -> dict[str, Any]:
        """The record of the weights that the run uses."""
        return weights_record(self.opened.checkpoints, self.loras, self.learned)

    @property
    def output_notes(self) -> list[str]:
        """Lines for the user on what the format of the files cannot hold."""
        family = self.opened.pipeline
        return output_notes(self.cfg.output, is_film=family.makes_films, has_sound=family.makes_sound)

    @property
    def sampler_settings(self) -> dict[str, str]:
        """Are the settings that image viewers are told of the sampler, of the first one where there are two."""
        first = getattr(self.samplers, "first", self.samplers)
        return schedule_settings(first, given_timesteps=bool(self.request.timesteps or self.request.sigmas))

    @property
    def notes(self) -> list[str]:
        """Lines for the user on settings that have no effect."""
        note = unused_ends_note(getattr(self.samplers, "first", self.samplers), self.cfg.scheduler)
        shrunk = None if self.shrunk is None else self.shrunk.line()
        return [*(line for line in (note, shrunk) if line is not None), *self._unused_words()]

    def _unused_words(self) -> list[str]:
        """Returns a line on each textual inversion whose word is in none of the prompts."""
        if self.embeddings is not None:
            return []
        texts = " ".join(getattr(self.request, name) or "" for name in PROMPT_FIELDS).lower()
        return [
            f"embedding.{index}: none of the prompts has its word {each.word}"
            for index, each in enumerate(self.learned)
            if each.word.lower() not in texts
        ]

    def use(self) -> None:
        """Puts LoRA files on the weights, and takes the words of textual inversions into use; those before go."""
        pipeline = self.opened.pipeline
        pipeline.memory.set_patches(self.patches)
        pipeline.use_words(self.words)

    @property
    def inputs_record(self) -> dict[str, Any]:
        """The record of what the results start from, beside the seed."""
        record = {} if self.inputs is None else self.inputs.as_record(self.request)
        if self.latents is not None:
            digest = hashlib.sha256(self.latents.numpy().tobytes()).hexdigest()
            record["latents"] = {"sha256": digest, "shape": list(self.latents.shape)}
        return record | ({} if self.embeddings is None else self.embeddings.as_record())

    def with_seed(self, seed: int) -> PreparedRun:
        """Returns the run of one result with another seed."""
        return replace(self, request=replace(self.request, seed=seed, num_images=1))


@name_own_places()
def prepare(
    cfg: DictConfig,
    draft: RequestDraft,
    latents: Tensor | Mapping[str, Tensor] | None = None,
    opened: OpenPipeline | None = None,
    embeddings: PromptEmbeddings | None = None,
) -> PreparedRun:
    """Opens the pipeline and completes the request of `draft`, which is one of `cfg`'s.

    Args:
        latents: initial noise `[N, ...]` of unit variance, instead of that which the seeds give; or by name.
        opened: the result of `open_pipeline` for `cfg` and `draft`, where there is one already.
        embeddings: in place of the prompts.

    Raises:
        ConfigError, HardwareError, CheckpointError: something does not fit.
    """
    known = request_fields([load_family(model._target_) for model in models(cfg)])
    check_known_fields(draft.fields, known, " refiner=".join(model.name for model in models(cfg)))
    choose_output_format(cfg)
    loras, learned = open_loras(cfg), open_embeddings(cfg)
    opened = opened or open_pipeline(cfg, draft)
    pipeline = opened.pipeline
    limits = pipeline.size_limits(opened.profile, cfg.model.size_multiple)
    request, shrunk = limits.fit(pipeline.complete(draft.request(pipeline.default_size())))
    pipeline.check(request)
    if isinstance(latents, Mapping):
        latents = pipeline.join_latents(latents, request)
    pipeline.latent_shape(request, latents)
    if embeddings is not None:
        pipeline.check_prompt_embeddings(request, embeddings)
    limits.check(request)
    options = cast(dict[str, Any], OmegaConf.to_container(cfg.scheduler, resolve=True))
    samplers = pipeline.plan(request, options)
    objective.check_reference(draft.reference, request.width, request.height, is_film=pipeline.makes_films)
    patches, words = pipeline.patches(loras), pipeline.learn_words(learned)
    inputs = draft.inputs, latents, embeddings, draft.reference
    return PreparedRun(cfg, request, opened, samplers, *inputs, loras, patches, shrunk, learned, words)


def locate_weights(cfg: DictConfig) -> dict[str, Any]:
    """Returns the record of the weights that `cfg` would use.

    Raises:
        ConfigError, CheckpointError: they are not there.
    """
    return weights_record(locate_models(cfg, component_names(cfg)), open_loras(cfg), open_embeddings(cfg))


def weights_record(
    checkpoints: Sequence[Checkpoint], loras: Sequence[NamedLora] = (), learned: Sequence[NamedEmbedding] = ()
) -> dict[str, Any]:
    """Returns the record of a model's weights, of its refiner's where there is one, of LoRA files and embeddings."""
    model, *refiners = checkpoints
    refiner = {"refiner": checkpoint_record(refiners[0])} if refiners else {}
    return checkpoint_record(model) | refiner | lora_record(loras) | embedding_record(learned)
