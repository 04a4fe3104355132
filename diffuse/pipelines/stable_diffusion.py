"""Stable Diffusion 1.x and 2.x: from a prompt to an image (Rombach et al., 2022)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from diffuse.models.text_encoder.clip import CLIPTextOutput
from diffuse.pipelines import clip_prompts
from diffuse.pipelines.latent_diffusion import CLIP, TOKENIZER, UNET, VAE, EncodedPrompts, LatentDiffusion
from diffuse.sampling.guidance import Conditioning
from diffuse.schema import GenerationRequest


class StableDiffusion(LatentDiffusion):
    """A checkpoint of this family: one text encoder, whose last states the U-Net attends to."""

    components = {"text_encoder": CLIP, "tokenizer": TOKENIZER, "unet": UNET, "vae": VAE}  # noqa: RUF012

    def check_conditioning(self) -> None:
        """See `LatentDiffusion`."""
        if self.unet_config.addition_embed_type is not None:
            raise self.mismatch("the unet takes sizes and a pooled text too, as model=sdxl gives it")

    def encode_prompts(self, request: GenerationRequest, guided: bool) -> EncodedPrompts:
        """Encodes the prompts as `encoder_hidden_states` `[1, n * T, D]`, of `n` chunks."""
        texts = [request.prompt]
        if guided and (request.negative_prompt or "") != request.prompt:
            texts.append(request.negative_prompt or "")
        (tokenizer,), (encoder,) = self.tokenizers, self.encoders
        prompts = clip_prompts.same_length([clip_prompts.tokenize(tokenizer, text, request) for text in texts])
        warnings = [
            line
            for name, prompt in zip(("prompt", "negative prompt"), prompts, strict=False)
            for line in clip_prompts.cut_warnings(name, prompt)
        ]
        encode = partial(clip_prompts.encode, select_state=last_state, device=self.memory.device(encoder))
        states: list[Conditioning] = [
            {"encoder_hidden_states": state} for state, _ in self.prompt_cache.encode(encoder, prompts, encode)
        ]
        return EncodedPrompts(states[0], states[1] if len(states) > 1 else None, warnings)


def last_state(output: CLIPTextOutput) -> Tensor:
    """Selects the states `[B, T, D]` that this family's U-Net attends to: those of the last layer."""
    return output.last_hidden_state
