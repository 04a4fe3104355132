"""The story of every pipeline: encode, denoise stage by stage, decode. A family fills in what each of them does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.embedding.locate_embedding import NamedEmbedding
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.device.memory import Memory
from diffuse.device.patches import Patch
from diffuse.device.size_limits import SizeLimits
from diffuse.errors import CheckpointError, ConfigError
from diffuse.pipelines.components import Components, Role
from diffuse.sampling.batches import PhaseClock, StepCounter, split_batches
from diffuse.sampling.denoise import Sampler
from diffuse.sampling.prompt_embeddings import PromptEmbeddings
from diffuse.sampling.results import DecodedMedia, PipelineOutput, Step
from diffuse.sampling.start import Generators, InitialState, Start
from diffuse.schema import GenerationRequest, MemoryProfileConfig
from diffuse.text_backends.backend import TextBackend
from diffuse.text_backends.embeddings import TextEncoder


class DenoiseBatch(Protocol):
    """Denoises a batch from its initial state, and returns latents `[B, ...]`. `guidance` is the family's own."""

    def __call__(self, state: InitialState, guidance: Any, generators: Generators, steps: StepCounter) -> Tensor: ...


class Stage(NamedTuple):
    """One denoiser's part of the way from noise to latents."""

    start: Start
    sampler: Sampler  # with its timesteps set
    calls: int  # of the denoiser, for one batch
    guidance: Any  # of the stage's `denoise`
    denoise: DenoiseBatch


class DiffusionPipeline(ABC):
    """A pipeline, ready to be called. Weights are read when a component is first used."""

    memory: Memory
    makes_films: ClassVar[bool] = False
    """Whether results have a rate, and several frames; known before anything is computed."""
    makes_sound: ClassVar[bool] = False
    """Whether results have sound."""

    @abstractmethod
    def default_size(self) -> tuple[int, int] | None:
        """Returns the width and height in pixels that the denoiser was trained at; None where no file says it."""

    @abstractmethod
    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Returns the request with the family's own fields filled where they were left open."""

    @abstractmethod
    def check(self, request: GenerationRequest) -> None:
        """Checks the request against the checkpoint's own configuration, before a weight is read.

        Raises:
            ConfigError: the checkpoint cannot make this.
        """

    @abstractmethod
    def check_prompt_embeddings(self, request: GenerationRequest, embeddings: PromptEmbeddings) -> None:
        """Checks embeddings that are given in place of the prompts.

        Raises:
            ConfigError: the model does not take them.
        """

    @abstractmethod
    def embed_prompts(self, request: GenerationRequest) -> PromptEmbeddings:
        """Encodes the prompts of a request, in float32 on the CPU, for a program that changes them.

        Raises:
            ConfigError: the model does not take them back.
        """

    def patches(self, loras: Sequence[NamedLora]) -> Mapping[str, Patch]:
        """Returns what LoRA files put on the weights, component by component.

        Raises:
            ConfigError: the family takes none, or a setting does not go with the model.
            CheckpointError: a file does not fit the model.
        """
        if loras:
            raise ConfigError(f"lora={loras[0].setting.source}: this family of models takes no LoRA; leave it out")
        return {}

    def learn_words(self, embeddings: Sequence[NamedEmbedding]) -> Any:
        """Returns what textual inversions add to the words of the text encoders, for `use_words`.

        Raises:
            ConfigError: the family takes none, or a word is one already.
            CheckpointError: a file does not fit the model.
        """
        if embeddings:
            source = embeddings[0].file.source
            raise ConfigError(f"embedding={source}: this family of models takes no embeddings; leave it out")
        return None

    def use_words(self, words: Any) -> None:  # noqa: B027
        """Sets which words the prompts are read with from now on, a result of `learn_words`."""

    def text_record(self, request: GenerationRequest) -> dict[str, Any] | None:
        """Returns which text backend encodes, for the record; None where the group has no say.

        After the request was made, it has the SHA-256 of embeddings that came from elsewhere.
        """
        return None

    @abstractmethod
    def latent_shape(self, request: GenerationRequest, latents: Tensor | None = None) -> tuple[int, ...]:
        """Returns the shape of one result's latents, such as `[C, h, w]`.

        Args:
            latents: the request's initial noise `[N, ...]`, if any.

        Raises:
            ConfigError: `latents` are not of that shape.
        """

    def join_latents(self, latents: Mapping[str, Tensor], request: GenerationRequest) -> Tensor:
        """Returns initial noise that is given by name, as one tensor `[N, ...]`.

        Raises:
            ConfigError: the names are not those of this model's latents, or one is of another shape.
        """
        if set(latents) != {"image"}:
            raise ConfigError(f"latents: hold {', '.join(latents) or 'nothing'}; give those of the image")
        return latents["image"]

    @abstractmethod
    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> Any:
        """Returns the sampler, or samplers, that `options` name, with the steps of the request.

        Raises:
            ConfigError: the sampler cannot do what the request asks.
        """

    @abstractmethod
    def stages(
        self,
        request: GenerationRequest,
        samplers: Any,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        embeddings: PromptEmbeddings | None = None,
        last_image: np.ndarray | None = None,
    ) -> tuple[list[Stage], list[str]]:
        """Encodes the prompts and the input image `[H, W, 3]`. Returns the stages, and a warning for each cut prompt.

        Args:
            samplers: the result of `plan`.
            image: of a film also the frames of a clip, `[F, H, W, 3]`.
            mask: bool `[H, W]`, true where the image is painted anew.
            embeddings: in place of the prompts.
            last_image: of a film, what it ends with, `[H, W, 3]`.
        """

    @abstractmethod
    def decode(self, batches: Sequence[Tensor], request: GenerationRequest) -> DecodedMedia:
        """Decodes the latents `[B, ...]` of every batch to frames `[N, F, H, W, 3]`, and sound where there is any."""

    @abstractmethod
    def name_latents(self, latents: Tensor, request: GenerationRequest) -> dict[str, Tensor]:
        """Returns all latents `[N, ...]` by the names of what they decode to, such as `image`."""

    @property
    def frame_multiple(self) -> int | None:
        """Frames of a film are a multiple of it, and one more; None where `num_frames` is not asked for."""
        return None

    @property
    def size_multiple(self) -> int:
        """Width and height are a multiple of it, as far as the checkpoint says so."""
        return 1

    def size_limits(self, profile: MemoryProfileConfig, multiple: int) -> SizeLimits:
        """Returns the limits of a profile, for sizes that the checkpoint and the configuration allow.

        Args:
            multiple: of the configuration.
        """
        return SizeLimits(profile, math.lcm(multiple, self.size_multiple), self.frame_multiple)

    def batch_size(self, request: GenerationRequest) -> int:
        """Returns how many results of a request are denoised in one batch."""
        return self.memory.batch_size(request.width, request.height)

    @torch.inference_mode()
    def __call__(
        self,
        request: GenerationRequest,
        samplers: Any,
        *,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        latents: Tensor | None = None,
        embeddings: PromptEmbeddings | None = None,
        last_image: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> PipelineOutput:
        """Makes the results of a request.

        Args:
            samplers: the result of `plan`.
            image: the image to start from, uint8 `[H, W, 3]` of the request's size; or a clip, `[F, H, W, 3]`.
            mask: bool `[H, W]`, true where the image is painted anew.
            latents: initial noise `[N, ...]` of unit variance; drawn from the seeds where it is None.
            embeddings: in place of the prompts.
            last_image: what a film ends with, uint8 `[H, W, 3]` of the request's size.
            seeds: one for each result, where they are not the request's own; so requests that differ in the seed alone
                can be made as one.
            on_step: called with each step that has ended.

        Raises:
            ConfigError: the latents' shape does not fit the request.
            RunError: a component gave NaN, or the device ran out of memory.
        """
        self.memory.start()
        clock = PhaseClock(self.memory)
        self.latent_shape(request, latents)
        seeds = request.seeds if seeds is None else seeds
        batches = split_batches(len(seeds), self.batch_size(request))
        generators = [[torch.Generator("cpu").manual_seed(seeds[i]) for i in batch] for batch in batches]

        # 1. The prompts become the denoisers' conditioning, and an image the distribution of its latents.
        with clock.phase("encode_s"):
            stages, warnings = self.memory.attempt(
                None, lambda: self.stages(request, samplers, image, mask, embeddings, last_image), phase="encode"
            )

        # 2. Noise becomes latents. All batches pass a stage before the next one, so that denoisers change places once.
        steps = StepCounter(sum(stage.calls for stage in stages) * len(batches), on_step)
        states: list[Tensor | None] = [
            None if latents is None else latents[batch.start : batch.stop].float() for batch in batches
        ]
        for stage in stages:
            for place, batch_generators in enumerate(generators):
                state = self._begin(stage, batch_generators, states[place])
                with clock.phase("denoise_s"):
                    states[place] = stage.denoise(state, stage.guidance, batch_generators, steps)
        denoised = [state for state in states if state is not None]

        # 3. Latents become frames. All at the end, so that components change places once, not once a batch.
        with clock.phase("decode_s"):
            media = self.decode(denoised, request)
            named = self.memory.attempt(
                None,
                lambda: self.name_latents(torch.cat([batch.float().cpu() for batch in denoised]), request),
                phase="decode",
            )
            if request.keep_unmasked and image is not None and mask is not None:
                media = replace(media, frames=np.where(mask[..., None], media.frames, image))

        return PipelineOutput(
            frames=media.frames,
            latents=named,
            timings=clock.timings(),
            step_seconds=steps.seconds,
            memory=self.memory.peaks(),
            warnings=[*warnings, *self.memory.step_downs.notes],
            step_downs=self.memory.step_downs.events,
            quantized=self.memory.quantized,
            fps=media.fps,
            sound=media.sound,
            sample_rate=media.sample_rate,
        )

    def _begin(self, stage: Stage, generators: Generators, latents: Tensor | None) -> InitialState:
        """Returns the state that a batch starts from. An attempt that fails has drawn nothing."""
        drawn = [generator.get_state() for generator in generators]

        def begin() -> InitialState:
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)
            return stage.start.begin(stage.sampler, generators, latents)

        return self.memory.attempt(None, begin, phase="encode")


class ModelPipeline(DiffusionPipeline):
    """A pipeline of one checkpoint: a family of models has one, or several that share most.

    Raises:
        CheckpointError: the checkpoint is not of the family, or two of its components do not fit together.
    """

    components: Components  # by the folders of a checkpoint
    request_fields: ClassVar[frozenset[str]]  # those that not every family knows
    text_encoder_name: ClassVar[str | None] = None
    """The option of `text_backend` that is the model's own text encoder; None where no other can take its place."""

    def __init__(self, checkpoint: Checkpoint, memory: Memory, text_backend: TextBackend | None = None) -> None:
        assert text_backend is None or self.text_encoder_name is not None
        self.checkpoint, self.memory = checkpoint, memory
        self.configs: dict[str, Any] = {}  # of the components that have a network

    @classmethod
    def component_names(cls, *, own_text: bool = True) -> list[str]:
        """Returns the names of the components; without `own_text`, those that a text backend leaves."""
        replaced = () if own_text else (Role.text_encoder, Role.tokenizer)
        return [name for name, component in cls.components.items() if component.role not in replaced]

    @classmethod
    def build_text_encoder(cls, checkpoint: Checkpoint, memory: Memory) -> TextEncoder:
        """Builds the text encoder alone, for `diffuse encode` and `diffuse serve-text`."""
        raise NotImplementedError

    def mismatch(self, reason: str, family: str = "") -> CheckpointError:
        """Builds the error for components that do not belong together.

        Args:
            family: the option `model=` that a whole checkpoint of this kind is for, where it is not this one's.
        """
        settings = " or ".join(f"{part.setting}.source" for part in self.checkpoint.parts.values())
        advice = f"choose another {settings}" if settings else "the folders are of different models"
        if family and not settings:
            advice = f"choose model={family}"
        return CheckpointError(f"{self.checkpoint.source}: {reason}; {advice}")
