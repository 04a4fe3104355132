"""Stable Diffusion 1.x and 2.x: from a prompt to an image (Rombach et al., 2022)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from diffuse.models.text_encoder.clip import CLIPTextOutput
from diffuse.pipelines import clip_prompts
from diffuse.pipelines.latent_diffusion import CLIP, TOKENIZER, UNET, VAE, EncodedPrompts, LatentDiffusion
from diffuse.sampling.denoise import Sampler
from diffuse.sampling.guidance import Conditioning
from diffuse.schedulers import outdated
from diffuse.schedulers.build import build_sampler
from diffuse.schema import GenerationRequest

TRAINED_SIZE = 64  # latent rows and columns of the first checkpoints


class StableDiffusion(LatentDiffusion):
    """A checkpoint of this family: one text encoder, whose last states the U-Net attends to."""

    components = {"text_encoder": CLIP, "tokenizer": TOKENIZER, "unet": UNET, "vae": VAE}  # noqa: RUF012
    request_fields = LatentDiffusion.request_fields | {"clip_skip"}

    def check_conditioning(self) -> None:
        """See `LatentDiffusion`."""
        if self.unet_config.addition_embed_type is not None:
            raise self.mismatch("the unet takes sizes and a pooled text too, which this family does not give", "sdxl")

    def check(self, request: GenerationRequest) -> None:
        """See `DiffusionPipeline`."""
        super().check(request)
        clip_prompts.check_clip_skip(request, self.configs["text_encoder"].num_hidden_layers)

    def scheduler(self, options: Mapping[str, Any], inpaints: bool = False) -> Sampler:
        """See `LatentDiffusion`; outdated published settings are corrected, as diffusers does for this family alone."""
        published = self.checkpoint.config("scheduler")
        sampler = build_sampler(options, published)
        changes = outdated.corrections(sampler, options, inpaints)
        if changes:
            note = outdated.correction_note(sampler, changes)
            sampler = build_sampler({**options, **changes}, published)
            sampler.notes = (note,)
        built: Sampler = sampler
        return built

    def default_size(self) -> tuple[int, int] | None:
        """See `DiffusionPipeline`. Too small a size that an old file says is not meant, as diffusers takes it too."""
        if self._says_small_size():
            return (TRAINED_SIZE * self.vae_config.factor,) * 2
        return super().default_size()

    def notes(self, request: GenerationRequest, sampler: Any) -> list[str]:
        """See `LatentDiffusion`; a corrected size is told too, where a picture is made of nothing and has it."""
        notes = super().notes(request, sampler)
        corrected = request.input_image is None and self._says_small_size()
        if corrected and (request.width, request.height) == self.default_size():
            said = self.unet_config.sample_size
            notes.append(
                f"this checkpoint's unet/config.json is outdated: sample_size={said} is taken as {TRAINED_SIZE}, as "
                "diffusers does; width= and height= choose another size"
            )
        return notes

    def _says_small_size(self) -> bool:
        """Is true for files from before version 0.9.0 of diffusers that say less than this family was trained at."""
        size = self.unet_config.sample_size
        config = self.checkpoint.part(self.denoiser).config(self.denoiser)
        version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version")))
        is_old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
        return isinstance(size, int) and size < TRAINED_SIZE and is_old

    def encode_prompts(self, request: GenerationRequest, guided: bool) -> EncodedPrompts:
        """Encodes the prompts as `encoder_hidden_states` `[1, n * T, D]`, of `n` chunks."""
        texts = [request.prompt]
        if guided and ((request.negative_prompt or "") != request.prompt or request.clip_skip):
            texts.append(request.negative_prompt or "")
        (encoder,) = self.encoders
        words = self.words[encoder]
        prompts = clip_prompts.same_length([clip_prompts.tokenize(words, text, request) for text in texts])
        warnings = [
            line
            for name, prompt in zip(("prompt", "negative prompt"), prompts, strict=False)
            for line in clip_prompts.cut_warnings(name, prompt)
        ]
        prompts = clip_prompts.skip_layers(prompts, request)
        encode = partial(clip_prompts.encode, select_state=last_state, device=self.memory.device(encoder))
        states: list[Conditioning] = [
            {"encoder_hidden_states": state} for state, _ in self.prompt_cache.encode(encoder, prompts, encode)
        ]
        return EncodedPrompts(states[0], states[1] if len(states) > 1 else None, warnings)


def last_state(output: CLIPTextOutput) -> Tensor:
    """Selects the states `[B, T, D]` that this family's U-Net attends to: those of the last layer."""
    return output.last_hidden_state
