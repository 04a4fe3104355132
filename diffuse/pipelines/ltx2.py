"""LTX-2: from a prompt to a film with sound (HaCohen et al., "LTX-2: Efficient Joint Audio-Visual Foundation Model",
2026). Versions 2.0 and 2.3, whose checkpoints say which options they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.device.memory import Memory
from diffuse.device.patches import Patch
from diffuse.errors import ConfigError
from diffuse.models.vocoder import ltx2_vocoder
from diffuse.pipelines.components import choose_components, declare, read_configs
from diffuse.pipelines.lora import LoraFitter
from diffuse.pipelines.ltx2_checks import check_film, check_film_components
from diffuse.pipelines.ltx2_codec import FilmCodec
from diffuse.pipelines.ltx2_components import COMPONENTS, TRANSFORMER
from diffuse.pipelines.ltx2_conditions import (
    FromGivenFrames,
    appended_tokens,
    as_pixels,
    check_given_frames,
    give_tokens,
    is_first_frame_alone,
)
from diffuse.pipelines.ltx2_denoiser import TransformerCalls
from diffuse.pipelines.ltx2_guidance import FilmGuidance, guided_texts, scales_of
from diffuse.pipelines.ltx2_layout import FilmLayout, film_layout
from diffuse.pipelines.ltx2_prompts import FilmPrompts
from diffuse.pipelines.ltx2_starts import FromFilmNoise, KnownTokens, first_frame_known
from diffuse.pipelines.ltx2_text_encoder import CONNECTORS, NAME, LTX2TextEncoder
from diffuse.pipelines.pipeline import ModelPipeline, Stage
from diffuse.sampling.batches import StepCounter
from diffuse.sampling.denoise import ReachedStep, denoise
from diffuse.sampling.prompt_embeddings import PromptEmbeddings
from diffuse.sampling.results import DecodedMedia
from diffuse.sampling.start import Generators, InitialState, Start
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.flow_match_euler import FlowMatchEuler
from diffuse.schedulers.options import without_end
from diffuse.schedulers.sampler import State
from diffuse.schema import FILM_INPUT_FIELDS, GenerationRequest
from diffuse.text_backends.backend import TextBackend

NUM_FRAMES, FPS = 121, 24.0  # where neither the request nor the model says it
SIZE = 768, 512


class LTX2(ModelPipeline):
    """A checkpoint of this family. Its sampler may shift the sigmas by the number of the film's tokens."""

    components = COMPONENTS
    request_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "num_frames",
            "fps",
            "sigmas",
            "guidance_rescale",
            "audio_guidance_scale",
            "audio_guidance_rescale",
            "modality_scale",
            "audio_modality_scale",
            "stg_scale",
            "audio_stg_scale",
            "stg_blocks",
            "input_image",
            "resize",
            "input_crf",
            *FILM_INPUT_FIELDS,
        }
    )
    makes_films: ClassVar[bool] = True
    makes_sound: ClassVar[bool] = True
    shifts_sigmas: ClassVar[bool] = True  # as the checkpoint's scheduler says
    text_encoder_name: ClassVar[str | None] = NAME
    text_tokens: ClassVar[int] = 1024  # of a text with its padding, as the model was trained

    def __init__(self, checkpoint: Checkpoint, memory: Memory, text_backend: TextBackend | None = None) -> None:
        super().__init__(checkpoint, memory)
        names = self.component_names(own_text=text_backend is None)
        self.components = choose_components({name: self.components[name] for name in names}, checkpoint)
        self.configs = read_configs(self.components, checkpoint)
        connectors = self.configs[CONNECTORS]
        self.prompts = FilmPrompts(checkpoint, memory, TRANSFORMER, connectors, self.text_tokens, text_backend)
        self.codec = FilmCodec(memory)
        self.lora_fitter = LoraFitter(self.components, checkpoint)
        self.check_configs()
        for name, component in self.components.items():
            if component.module is not None:
                # In half precision the spectrum of 2.3's vocoder is audibly another.
                float32 = component.module is ltx2_vocoder.LTX2VocoderWithBWE
                declare(name, component, self.configs[name], checkpoint, memory, float32=float32)

    def check_configs(self) -> None:
        """Raises CheckpointError where two components do not fit together."""
        check_film_components(self.configs, self.checkpoint, self.prompts.vocab_size)

    @property
    def frame_multiple(self) -> int:
        """See `DiffusionPipeline`."""
        return self.multiples()[1]

    @property
    def size_multiple(self) -> int:
        """See `DiffusionPipeline`."""
        return self.multiples()[0]

    def patches(self, loras: Sequence[NamedLora]) -> Mapping[str, Patch]:
        """See `DiffusionPipeline`: the transformer and the connectors are changed."""
        return self.lora_fitter.patches(loras)

    def default_size(self) -> tuple[int, int] | None:
        """Returns the size that the reference makes where none is given: no file of a checkpoint says it."""
        return SIZE

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Fills the fields that are open; of the sound, with those of the film."""
        values: dict[str, Any] = {"num_frames": NUM_FRAMES, "fps": FPS, "modality_scale": 1.0, "stg_scale": 0.0}
        request = _filled(request, values)
        names = ("guidance_scale", "guidance_rescale", "modality_scale", "stg_scale")
        return _filled(request, {f"audio_{name}": getattr(request, name) for name in names})

    def check(self, request: GenerationRequest) -> None:
        """See `DiffusionPipeline`."""
        side, frames = self.multiples()
        check_film(request, self.configs, side=side, frames=frames)
        check_given_frames(request, frames)
        self.prompts.check([*self.texts(request).values()])

    def multiples(self) -> tuple[int, int]:
        """Returns the multiples of pixels that a side is of, and of frames that a film is of, and one more."""
        return self.configs["vae"].factor, self.configs["vae"].frames

    def first_request(self, request: GenerationRequest) -> GenerationRequest:
        """Returns what the first stage makes for a request: all of it."""
        return request

    def text_record(self, request: GenerationRequest) -> dict[str, Any]:
        """See `DiffusionPipeline`."""
        return self.prompts.as_record([*self.texts(request).values()])

    @classmethod
    def build_text_encoder(cls, checkpoint: Checkpoint, memory: Memory) -> LTX2TextEncoder:
        """See `ModelPipeline`."""
        return LTX2TextEncoder.alone(checkpoint, memory, cls.text_tokens)

    @staticmethod
    def texts(request: GenerationRequest) -> dict[str, str]:
        """Returns the texts that a film is made of, by what they are called."""
        return guided_texts(request)

    def check_prompt_embeddings(self, request: GenerationRequest, embeddings: PromptEmbeddings) -> None:
        """Refuses them: a film's text has two kinds of embeddings."""
        raise ConfigError("prompt_embeds: are not implemented for films; give a prompt")

    def embed_prompts(self, request: GenerationRequest) -> PromptEmbeddings:
        """Refuses to; see `check_prompt_embeddings`."""
        raise ConfigError("encode(): is not implemented for films")

    def batch_size(self, request: GenerationRequest) -> int:
        """See `DiffusionPipeline`: each frame of the latents counts as a picture."""
        request = self.complete(request)
        layout = self.layout(request)
        frames = layout.frames + appended_tokens(request, layout) // layout.frame_tokens
        return self.memory.batch_size(request.width * frames, request.height)

    def layout(self, request: GenerationRequest) -> FilmLayout:
        """Returns the layout of a film's latents."""
        return film_layout(request, self.configs["vae"], self.configs["audio_vae"])

    def first_layout(self, request: GenerationRequest) -> FilmLayout:
        """Returns the layout of what the first stage makes: with the whole film's sound."""
        return replace(self.layout(self.first_request(request)), audio_frames=self.layout(request).audio_frames)

    def latent_shape(self, request: GenerationRequest, latents: Tensor | None = None) -> tuple[int, ...]:
        """Returns the shape `[T + A, C]` of the tokens of a film and its sound; see `DiffusionPipeline`."""
        shape = self.first_layout(request).shape
        if latents is not None and tuple(latents.shape) != (request.num_images, *shape):
            raise ConfigError(f"latents are {tuple(latents.shape)}; this request needs {(request.num_images, *shape)}")
        return shape

    def join_latents(self, latents: Mapping[str, Tensor], request: GenerationRequest) -> Tensor:
        """Returns noise `video` `[N, C, F, h, w]` and `audio` `[N, c, A, bins]` as tokens `[N, T + A, C]`."""
        return self.first_layout(request).join_named(latents, request.num_images)

    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> Any:
        """See `DiffusionPipeline`."""
        sampler = self.sampler(options)
        self.set_timesteps(sampler, request)
        return sampler

    def sampler(self, options: Mapping[str, Any]) -> FlowMatchEuler:
        """Builds the sampler that `options` name, with the checkpoint's published setting where an option is null.

        Raises:
            ConfigError: a film cannot be made with it.
        """
        if not self.shifts_sigmas:
            unshifted = {"use_dynamic_shifting": False, "shift_terminal": 0.0}
            options = {**options, **{name: value for name, value in unshifted.items() if options.get(name) is None}}
        sampler = build_sampler(options, self.checkpoint.config("scheduler"))
        assert isinstance(sampler, FlowMatchEuler)
        for name in ("invert_sigmas", "stochastic_sampling"):
            if getattr(sampler, name):
                raise ConfigError(f"scheduler.{name}=true: is not implemented for films; set it to false")
        return sampler

    def set_timesteps(self, sampler: FlowMatchEuler, request: GenerationRequest) -> None:
        """Chooses the sigmas that a request visits: those given, or evenly spaced ones, before they are shifted.

        Raises:
            ConfigError: those given do not fall.
        """
        count = request.num_inference_steps
        sigmas = request.sigmas or np.linspace(1, 1 / count, count).tolist()
        layout = self.first_layout(request)
        mu = sampler.calculate_shift(layout.video_tokens + appended_tokens(request, layout))
        sampler.set_timesteps(count, sigmas=without_end(sigmas), mu=mu)

    def stages(
        self,
        request: GenerationRequest,
        samplers: Any,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        embeddings: PromptEmbeddings | None = None,
        last_image: np.ndarray | None = None,
    ) -> tuple[list[Stage], list[str]]:
        """Returns one stage, from noise, and from frames that the film is given, to latents without noise.

        There is no `mask` `[H, W]`, and no `embeddings`.
        """
        self.set_timesteps(samplers, request)
        layout = self.layout(request)
        guidance, warnings = self.guidance(request, layout)
        start = self.start(layout, request, image, last_image)
        return [self.stage(layout, request, start, samplers, guidance)], [*self.checkpoint.notes, *warnings]

    def start(
        self, layout: FilmLayout, request: GenerationRequest, image: np.ndarray | None, last_image: np.ndarray | None
    ) -> Start:
        """Returns the start of a film, with what it is given: `image`, a picture `[H, W, 3]` or the frames of a clip
        `[F, H, W, 3]`, and the last picture `[H, W, 3]`."""
        if image is None and last_image is None:
            return FromFilmNoise(layout)
        if image is None or not is_first_frame_alone(request):
            return self.start_given(layout, request, image, last_image)
        device = self.memory.device(TRANSFORMER)
        picture = self.codec.encode(as_pixels(image[None]), layout).to(device)
        return KnownTokens(FromFilmNoise(layout), picture, first_frame_known(layout, device))

    def start_given(
        self, layout: FilmLayout, request: GenerationRequest, image: np.ndarray | None, last_image: np.ndarray | None
    ) -> FromGivenFrames:
        """Encodes the frames that a film is given, `[H, W, 3]` or `[F, H, W, 3]`. Returns its start with them."""
        pictures = [each if each.ndim == 4 else each[None] for each in (image, last_image) if each is not None]
        device = self.memory.device(TRANSFORMER)
        encoded = [self.codec.encode(as_pixels(frames), layout).to(device) for frames in pictures]
        conditions = give_tokens(request, layout, encoded, self.configs[TRANSFORMER])
        return FromGivenFrames(layout, conditions, request.sigmas[0] if request.sigmas else 1.0)

    def stage(
        self, layout: FilmLayout, request: GenerationRequest, start: Start, sampler: Any, guidance: FilmGuidance
    ) -> Stage:
        """Returns the stage that denoises films of a layout."""
        blocks = request.stg_blocks or ()
        appended = start.conditions.places if isinstance(start, FromGivenFrames) else torch.empty(0, 3)
        denoise_batch = partial(self.denoise_batch, layout, appended, blocks)
        return Stage(start, sampler, len(sampler.timesteps), guidance, denoise_batch)

    def guidance(self, request: GenerationRequest, layout: FilmLayout) -> tuple[FilmGuidance, list[str]]:
        """Encodes the prompts. Returns the guidance with one warning for each prompt that was cut."""
        video, audio = scales_of(request, ""), scales_of(request, "audio_")
        texts = self.texts(request)
        positive, *others = self.prompts.encode(list(texts.values()))
        warnings = self.prompts.warnings(texts)
        guidance = FilmGuidance(
            positive, others[0] if others else None, video, audio, layout.audio_frames, layout.audio_width
        )
        return guidance, warnings

    def denoise_batch(
        self,
        layout: FilmLayout,
        appended: Tensor,
        stg_blocks: Sequence[int],
        state: InitialState,
        guidance: FilmGuidance,
        generators: Generators,
        steps: StepCounter,
    ) -> Tensor:
        """Denoises a batch along the timesteps of its stepper, and returns tokens `[B, T + A, C]`.

        `appended` are the places `[K, 3]` of tokens that stand between the film's and the sound's.
        """
        memory, config = self.memory, self.configs[TRANSFORMER]
        stepper: Any = state.stepper
        reached = ReachedStep(State(state.latents))

        def after_step(index: int, timestep: float, seconds: float, state: State) -> None:
            memory.after_step(index)
            steps.end_step(
                timestep,
                seconds,
                state.sample,
                lambda: self.codec.frames(layout.split(state.denoised())[0], layout),
            )

        def current_guidance() -> FilmGuidance:
            memory.reach()
            return guidance._replace(sigma=stepper.sigmas[reached.index])

        def go_on() -> Tensor:
            with memory.use(TRANSFORMER) as transformer:
                device = memory.device(TRANSFORMER)
                if not reached.index:
                    reached.state = State(state.latents.to(device))
                film, sound = transformer.coordinates(
                    layout.frames, layout.rows, layout.columns, fps=layout.fps, audio_frames=layout.audio_frames
                )
                calls = TransformerCalls(
                    transformer,
                    transformer.rotations(torch.cat((film.to(device), appended.to(device))), sound, device),
                    layout.audio_frames,
                    layout.audio_width,
                    memory.dtype(TRANSFORMER),
                    stg_blocks,
                    use_cross_timestep=config.cross_attn_mod,
                    batched=lambda: memory.batch_guidance,
                    limit=lambda: memory.step_downs.batch_limit,
                )
                return denoise(
                    state.wrap(calls),  # type: ignore[arg-type]
                    stepper,
                    reached,
                    current_guidance,
                    generators,
                    dtype=memory.dtype(TRANSFORMER),
                    input_dtype=torch.float32,
                    after_step=after_step,
                )

        guided = len(guidance.passes) > 1
        rows = len(state.latents)
        tokens = memory.attempt(TRANSFORMER, go_on, phase="denoise", rows=rows, guided=guided)
        return layout.join(*layout.split(tokens)) if len(appended) else tokens

    def decode(self, batches: Sequence[Tensor], request: GenerationRequest) -> DecodedMedia:
        """Decodes the tokens `[B, T + A, C]` of every batch to frames `[N, F, H, W, 3]` and sound `[N, 2, S]`."""
        layout = self.layout(request)
        split = [layout.split(batch) for batch in batches]
        sound = np.concatenate([self.codec.sound(audio, layout) for _, audio in split])
        frames = []
        for video, _ in split:
            frames.append(self.codec.frames(video, layout))
            self.memory.step_downs.end_decoding()
        rate = self.configs["vocoder"].output_sampling_rate
        return DecodedMedia(np.concatenate(frames), fps=layout.fps, sound=sound, sample_rate=rate)

    def name_latents(self, latents: Tensor, request: GenerationRequest) -> dict[str, Tensor]:
        """Returns tokens `[N, T + A, C]` as latents, `video` `[N, C, F, h, w]` and `audio` `[N, c, A, bins]`."""
        return self.codec.named(latents, self.layout(request))


class LTX2Distilled(LTX2):
    """A checkpoint that was distilled to a few sigmas, which are visited as they are given."""

    shifts_sigmas = False


def _filled(request: GenerationRequest, values: Mapping[str, Any]) -> GenerationRequest:
    return replace(request, **{name: value for name, value in values.items() if getattr(request, name) is None})
