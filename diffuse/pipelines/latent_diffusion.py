"""Latent diffusion of images: an autoencoder, and a U-Net that denoises its latents (Rombach et al., 2022).

A family of checkpoints adds its text encoders, and encodes a prompt as the denoiser's conditioning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.embedding.locate_embedding import NamedEmbedding
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.device.memory import Memory
from diffuse.device.patches import Patch
from diffuse.errors import ConfigError
from diffuse.models.text_encoder import clip
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl
from diffuse.pipelines.components import Component, Role, declare, read_configs, with_role
from diffuse.pipelines.image_codec import decode_image, encode_image
from diffuse.pipelines.latent_checks import check_channels, check_text, paints_into
from diffuse.pipelines.learned_words import Words, learn_words
from diffuse.pipelines.lora import LoraFitter
from diffuse.pipelines.pipeline import ModelPipeline, Stage
from diffuse.sampling.batches import StepCounter
from diffuse.sampling.denoise import ReachedStep, Sampler, denoise, require_finite, set_timesteps
from diffuse.sampling.guidance import ClassifierFreeGuidance, Conditioning, embedded_scale, in_parts
from diffuse.sampling.prompt_cache import PromptCache
from diffuse.sampling.prompt_embeddings import PromptEmbeddings, check_embeddings
from diffuse.sampling.results import DecodedMedia
from diffuse.sampling.start import (
    DrawLatents,
    FromImage,
    FromNoise,
    Generators,
    InitialState,
    Inpaint,
    InpaintingModel,
    Start,
)
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.sampler import State
from diffuse.schema import INPUT_FIELDS, GenerationRequest

UNET = Component(
    Role.denoiser,
    unet2d_condition.UNet2DConditionModel,
    unet2d_condition.UNet2DConditionConfig,
    unet2d_condition.rename,
)
VAE = Component(
    Role.image_codec, autoencoder_kl.AutoencoderKL, autoencoder_kl.AutoencoderKLConfig, autoencoder_kl.rename
)
CLIP = Component(Role.text_encoder, clip.CLIPTextModel, clip.CLIPTextConfig, clip.rename)
CLIP_WITH_PROJECTION = Component(
    Role.text_encoder, clip.CLIPTextModelWithProjection, clip.CLIPTextConfig, clip.rename_projected
)
TOKENIZER = Component(Role.tokenizer)


class EncodedPrompts(NamedTuple):
    """A request's prompts as the denoiser's conditioning, in its precision."""

    positive: Conditioning
    negative: Conditioning | None  # None where guidance would change nothing
    warnings: list[str]  # one for each prompt that was cut


class LatentDiffusion(ModelPipeline):
    """A checkpoint with an image autoencoder and a U-Net.

    Raises:
        CheckpointError: a component's configuration is missing or asks for what is not implemented, its weights are
            not those of that configuration, or two components do not fit together.
    """

    request_fields: ClassVar[frozenset[str]] = frozenset(  # that not every family knows
        {"long_prompt", "prompt_syntax", "timesteps", "sigmas", "guidance_rescale", *INPUT_FIELDS} - {"input_crf"}
    )

    def __init__(self, checkpoint: Checkpoint, memory: Memory) -> None:
        super().__init__(checkpoint, memory)
        (self.denoiser,) = with_role(self.components, Role.denoiser)
        (self.codec,) = with_role(self.components, Role.image_codec)
        self.encoders = with_role(self.components, Role.text_encoder)
        self.configs = read_configs(self.components, checkpoint)
        self.prompt_cache = PromptCache(memory, self.denoiser)
        self.lora_fitter = LoraFitter(self.components, checkpoint)
        self.tokenizers = [
            CLIPTokenizer.from_folder(checkpoint.part(name).path(name))
            for name in with_role(self.components, Role.tokenizer)
        ]
        check_channels(checkpoint.source, self.unet_config, self.vae_config, self.mismatch)
        self.check_conditioning()
        check_text(self.unet_config, [self.configs[name] for name in self.encoders], self.tokenizers, self.mismatch)
        self._tokenizers = dict(zip(self.encoders, self.tokenizers, strict=True))
        self.words = self.learn_words(())
        for name, component in self.components.items():
            if component.module is not None:
                config = self.configs[name]
                float32 = component.role is Role.image_codec and config.force_upcast
                declare(name, component, config, checkpoint, memory, float32=float32)

    @property
    def unet_config(self) -> unet2d_condition.UNet2DConditionConfig:
        """The architecture of the denoiser."""
        config: unet2d_condition.UNet2DConditionConfig = self.configs[self.denoiser]
        return config

    @property
    def vae_config(self) -> autoencoder_kl.AutoencoderKLConfig:
        """The architecture of the image autoencoder."""
        config: autoencoder_kl.AutoencoderKLConfig = self.configs[self.codec]
        return config

    @property
    def is_inpainting_model(self) -> bool:
        """True where the denoiser takes the mask and the masked image beside the latents."""
        return paints_into(self.unet_config, self.vae_config)

    @abstractmethod
    def encode_prompts(self, request: GenerationRequest, guided: bool) -> EncodedPrompts:
        """Encodes the prompts; the negative ones where `guided`, and where they differ from the positive ones."""

    @property
    def pooled_width(self) -> int | None:
        """The width of the pooled text that the denoiser takes; None where it takes none."""
        return None

    def check_prompt_embeddings(self, request: GenerationRequest, embeddings: PromptEmbeddings) -> None:
        """See `DiffusionPipeline`."""
        width, pooled = self.unet_config.per_level(self.unet_config.cross_attention_dim)[0], self.pooled_width
        check_embeddings(embeddings, width=width, pooled_width=pooled, guided=self.is_guided(request))

    def embed_prompts(self, request: GenerationRequest) -> PromptEmbeddings:
        """See `DiffusionPipeline`."""
        with torch.inference_mode():
            prompts = self.encode_prompts(request, guided=True)
        states: dict[str, Tensor] = {}
        # A negative prompt that is the prompt itself is not encoded twice.
        for side, conditioning in (("", prompts.positive), ("negative_", prompts.negative or prompts.positive)):
            states[f"{side}prompt_embeds"] = conditioning["encoder_hidden_states"]
            if self.pooled_width is not None:
                states[f"{side}pooled_prompt_embeds"] = conditioning["text_embeds"]
        # Copied out of inference mode, in which nobody could change them.
        return PromptEmbeddings(**{name: value.float().cpu().clone() for name, value in states.items()})

    def given_prompts(self, request: GenerationRequest, embeddings: PromptEmbeddings, guided: bool) -> EncodedPrompts:
        """Returns what `encode_prompts` would, of embeddings that were given."""
        dtype = self.memory.dtype(self.denoiser)
        sides = []
        for side in ("", "negative_") if guided else ("",):
            states = {"encoder_hidden_states": getattr(embeddings, f"{side}prompt_embeds").to(dtype)}
            if self.pooled_width is not None:
                states["text_embeds"] = getattr(embeddings, f"{side}pooled_prompt_embeds").to(dtype)
            sides.append({**states, **self.added_conditioning(request, negative=bool(side))})
        return EncodedPrompts(sides[0], sides[1] if guided else None, [])

    def added_conditioning(self, request: GenerationRequest, negative: bool) -> dict[str, Tensor]:
        """Returns what the denoiser takes beside the text, `[1, ...]` each; nothing unless the family says so."""
        return {}

    def is_guided(self, request: GenerationRequest) -> bool:
        """Returns whether a negative prediction is needed: at 0 the formula would leave the prompt out, and published
        settings write 0 for "no guidance"; a distilled denoiser takes the scale itself."""
        return request.guidance_scale not in (0, 1) and self.unet_config.time_cond_proj_dim is None

    @abstractmethod
    def check_conditioning(self) -> None:
        """Raises CheckpointError where the denoiser does not take the conditioning that this family gives."""

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """See `DiffusionPipeline`; a family without fields of its own leaves nothing open."""
        return request

    def patches(self, loras: Sequence[NamedLora]) -> Mapping[str, Patch]:
        """See `DiffusionPipeline`."""
        return self.lora_fitter.patches(loras)

    def learn_words(self, embeddings: Sequence[NamedEmbedding], *, strict: bool = True) -> Mapping[str, Words]:
        """See `DiffusionPipeline`; where not `strict`, a file that fits no text encoder is left to another model."""
        configs, model = {name: self.configs[name] for name in self.encoders}, f"model.source={self.checkpoint.source}"
        return learn_words(embeddings, self._tokenizers, configs, model, strict=strict)

    def use_words(self, words: Mapping[str, Words]) -> None:
        """See `DiffusionPipeline`."""
        self.words = words

    def default_size(self) -> tuple[int, int] | None:
        """See `DiffusionPipeline`."""
        size = self.unet_config.sample_size
        if size is None:
            return None
        rows, columns = size if isinstance(size, tuple) else (size, size)
        return columns * self.vae_config.factor, rows * self.vae_config.factor

    def check(self, request: GenerationRequest) -> None:
        """See `DiffusionPipeline`."""
        factor = self.vae_config.factor
        for name, value in (("width", request.width), ("height", request.height)):
            if value % factor:
                nearest = max(factor, round(value / factor) * factor)
                raise ConfigError(f"{name}={value}: this checkpoint needs a multiple of {factor}; try {nearest}")
        if self.is_inpainting_model and not request.mask_image:
            raise ConfigError(
                f"model.source={self.checkpoint.source}: paints into pictures; add input_image=FILE and mask_image=FILE"
            )

    def latent_shape(self, request: GenerationRequest, latents: Tensor | None = None) -> tuple[int, ...]:
        """Returns the shape `[C, h, w]` of one image's latents; see `DiffusionPipeline`."""
        factor = self.vae_config.factor
        shape = self.vae_config.latent_channels, request.height // factor, request.width // factor
        if latents is not None and tuple(latents.shape) != (request.num_images, *shape):
            raise ConfigError(f"latents are {tuple(latents.shape)}; this request needs {(request.num_images, *shape)}")
        return shape

    def scheduler(self, options: Mapping[str, Any], inpaints: bool = False) -> Sampler:
        """Builds the sampler that `options` name, with the checkpoint's published setting where an option is null.

        Args:
            inpaints: a masked part of a picture is painted anew.
        """
        scheduler: Sampler = build_sampler(options, self.checkpoint.config("scheduler"))
        return scheduler

    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> Sampler:
        """See `DiffusionPipeline`."""
        scheduler = self.scheduler(options, inpaints=bool(request.mask_image))
        set_timesteps(scheduler, request)
        return scheduler

    def stages(
        self,
        request: GenerationRequest,
        samplers: Any,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        embeddings: PromptEmbeddings | None = None,
        last_image: np.ndarray | None = None,
    ) -> tuple[list[Stage], list[str]]:
        """Returns one stage, from noise or an image `[H, W, 3]` with its mask `[H, W]` to latents without noise.

        There is no `last_image`.
        """
        sampler: Sampler = samplers
        set_timesteps(sampler, request, skip=request.skipped_steps)
        guidance, warnings = self.guidance(request, embeddings)
        start = self._start(request, image, mask)
        factor = self.vae_config.factor
        if mask is not None and not mask[::factor, ::factor].any():
            size = f"{request.width} x {request.height}"
            warnings = [*warnings, f"mask_image: selects nothing at {size}; make white what is to be painted anew"]
        stage = Stage(start, sampler, len(sampler.timesteps), guidance, self.denoise_batch)
        return [stage], [*self.notes(request, sampler), *warnings]

    def notes(self, request: GenerationRequest, sampler: Any) -> list[str]:
        """Returns lines that tell the user what was found out about the checkpoint, or corrected in its settings."""
        return [*self.checkpoint.notes, *sampler.notes]

    def guidance(
        self, request: GenerationRequest, embeddings: PromptEmbeddings | None = None
    ) -> tuple[ClassifierFreeGuidance, list[str]]:
        """Builds the guidance for a request. Returns it with one warning for each prompt that was cut."""
        # A distilled denoiser takes the guidance scale itself, embedded in this width.
        width = self.unet_config.time_cond_proj_dim
        guided = self.is_guided(request)
        if embeddings is None:
            prompts = self.encode_prompts(request, guided=guided)
        else:
            prompts = self.given_prompts(request, embeddings, guided)
        dtype = self.memory.dtype(self.denoiser)
        scale = {} if width is None else {"timestep_cond": embedded_scale(request.guidance_scale, width).to(dtype)}
        guidance = ClassifierFreeGuidance(
            self._on_device({**prompts.positive, **scale}),
            None if prompts.negative is None else self._on_device(prompts.negative),
            request.guidance_scale,
            self.memory.batch_guidance,
            request.guidance_rescale,
        )
        return guidance, prompts.warnings

    def denoise_batch(
        self, state: InitialState, guidance: ClassifierFreeGuidance, generators: Generators, steps: StepCounter
    ) -> Tensor:
        """Denoises a batch along the timesteps of its stepper, and returns latents `[B, C, h, w]`."""
        memory = self.memory
        reached = ReachedStep(State(state.latents))

        def after_step(index: int, timestep: float, seconds: float, state: State) -> None:
            memory.after_step(index)
            steps.end_step(timestep, seconds, state.sample, lambda: self._decode(state.denoised()))

        def current_guidance() -> ClassifierFreeGuidance:
            memory.reach()
            return guidance._replace(batched=memory.batch_guidance)

        def go_on() -> Tensor:
            with memory.use(self.denoiser) as denoiser:
                if not reached.index:
                    reached.state = State(state.latents.to(memory.device(self.denoiser)))
                return denoise(
                    state.wrap(in_parts(denoiser, lambda: memory.step_downs.batch_limit)),
                    state.stepper,
                    reached,
                    current_guidance,
                    generators,
                    dtype=memory.dtype(self.denoiser),
                    after_step=after_step,
                )

        size, guided = len(state.latents), guidance.negative is not None
        return memory.attempt(self.denoiser, go_on, phase="denoise", rows=size, guided=guided)

    def decode(self, batches: Sequence[Tensor], request: GenerationRequest) -> DecodedMedia:
        """Decodes the latents `[B, C, h, w]` of every batch to images, frames `[N, 1, H, W, 3]`."""
        frames = []
        for latents in batches:
            frames.append(self._decode(latents))
            self.memory.step_downs.end_decoding()
        return DecodedMedia(np.concatenate(frames))

    def name_latents(self, latents: Tensor, request: GenerationRequest) -> dict[str, Tensor]:
        """See `DiffusionPipeline`."""
        return {"image": latents}

    def _decode(self, latents: Tensor) -> np.ndarray:
        """Decodes latents `[B, C, h, w]` without noise to uint8 frames `[B, 1, H, W, 3]`."""
        memory, dtype = self.memory, self.memory.dtype(self.codec)
        memory.reach()

        def decode() -> np.ndarray:
            z = self.unscaled(latents)
            with memory.use(self.codec) as vae:
                pixels = decode_image(vae, z.to(memory.device(self.codec), dtype), memory, self.codec)
            require_finite(pixels, self.codec, dtype)
            unit = (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # [B, H, W, 3]
            images: np.ndarray = (unit.numpy() * 255).round().astype(np.uint8)
            return images[:, None]

        return memory.attempt(self.codec, decode, phase="decode")

    def _on_device(self, conditioning: Conditioning) -> Conditioning:
        return {name: value.to(self.memory.device(self.denoiser)) for name, value in conditioning.items()}

    def _start(self, request: GenerationRequest, image: np.ndarray | None, mask: np.ndarray | None) -> Start:
        pure_noise = request.strength == 1
        shape = self.latent_shape(request)
        if image is None:
            return FromNoise(shape)
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1  # [1, 3, H, W]
        if mask is None:
            return FromImage(self._encode_image(pixels), pure_noise)
        factor = self.vae_config.factor
        pixel_mask = torch.tensor(mask)[None, None].float()  # [1, 1, H, W]
        # A latent is painted anew where the first of its pixels is.
        latent_mask = pixel_mask[..., ::factor, ::factor].to(self.memory.device(self.denoiser))
        if not self.is_inpainting_model:
            return Inpaint(self._encode_image(pixels, inpaints=True), latent_mask, pure_noise)
        start = FromNoise(shape) if pure_noise else FromImage(self._encode_image(pixels, inpaints=True), pure_noise)
        return InpaintingModel(start, self._encode_image(pixels * (1 - pixel_mask), inpaints=True), latent_mask)

    def _encode_image(self, pixels: Tensor, inpaints: bool = False) -> DrawLatents:
        """Encodes pixels `[1, 3, H, W]` from -1 to 1. Returns what draws latents from the encoder's distribution."""
        dtype = self.memory.dtype(self.codec)

        def encode() -> autoencoder_kl.DiagonalGaussian:
            on_device = pixels.to(self.memory.device(self.codec), dtype)
            with self.memory.use(self.codec) as vae:
                distribution = encode_image(vae, on_device, self.memory, self.codec)
            require_finite(distribution.mean, self.codec, dtype)
            return distribution

        distribution = self.memory.attempt(self.codec, encode, phase="encode")

        def draw(generators: Generators) -> Tensor:
            z = distribution.sample(generators).to(self.memory.device(self.denoiser)).float()
            return self.scaled(z, inpaints)

        return draw

    def scaled(self, z: Tensor, inpaints: bool = False) -> Tensor:
        """Returns the autoencoder's latents `[B, C, h, w]` as those of the denoiser.

        Args:
            inpaints: a masked part of the picture is painted anew.
        """
        return (z - (self.vae_config.shift_factor or 0.0)) * self.vae_config.scaling_factor

    def unscaled(self, latents: Tensor) -> Tensor:
        """Returns the denoiser's latents `[B, C, h, w]` as those of the autoencoder."""
        config = self.vae_config
        return latents / config.scaling_factor + (config.shift_factor or 0.0)
