"""Stable Diffusion 1.x and 2.x: a prompt becomes a picture (Rombach et al., 2022)."""

from __future__ import annotations

from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.memory import Memory
from diffuse.models.text_encoder import clip
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.pipelines.latent_diffusion import Encoded, LatentPipeline
from diffuse.sampling import prompts as prompt
from diffuse.sampling.guidance import Conditioning
from diffuse.schema import GenerationRequest


class StableDiffusion(LatentPipeline):
    """A checkpoint of this family: one text encoder, whose last states the U-Net attends to."""

    components = ("text_encoder", "tokenizer", "unet", "vae")

    def __init__(self, checkpoint: Checkpoint, memory: Memory) -> None:
        super().__init__(checkpoint, memory)
        self.tokenizer = CLIPTokenizer.from_folder(checkpoint.part("tokenizer").path("tokenizer"))
        text = self.config(clip.CLIPTextConfig, "text_encoder")
        self.check_text_width(text.hidden_size)
        self.check_text(self.tokenizer, text)
        if self.unet_config.addition_embed_type is not None:
            raise self.misfit("the unet takes sizes and a pooled text too, as model=sdxl gives it")
        self.add("text_encoder", clip.CLIPTextModel, text, clip.rename)
        self.add_denoiser()

    def encode(self, request: GenerationRequest, guided: bool) -> Encoded:
        """Text states `[1, n * T, D]` of `n` chunks, as `encoder_hidden_states`."""
        texts = [request.prompt]
        if guided and (request.negative_prompt or "") != request.prompt:
            texts.append(request.negative_prompt or "")
        prompts = prompt.same_length([prompt.read(self.tokenizer, text, request) for text in texts])
        cut = [
            line
            for name, read in zip(("prompt", "negative prompt"), prompts, strict=False)
            for line in prompt.cut_off(name, read)
        ]
        made = self.encoded("text_encoder", prompts, last_state)
        states: list[Conditioning] = [{"encoder_hidden_states": state} for state, _ in made]
        return Encoded(states[0], states[1] if len(states) > 1 else None, cut)


def last_state(output: clip.CLIPTextOutput) -> Tensor:
    """Of what a text encoder gives, the states that this family's U-Net attends to."""
    return output.last_hidden_state
