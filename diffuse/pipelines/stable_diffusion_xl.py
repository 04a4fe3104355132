"""Stable Diffusion XL: two text encoders, and a denoiser that is told of sizes (Podell et al., "SDXL: Improving Latent
Diffusion Models for High-Resolution Image Synthesis", 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffuse.memory_profile import Memory
from diffuse.models.text_encoder import clip
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.pipelines.guidance import Conditioning
from diffuse.pipelines.latent import Encoded, LatentPipeline, cut_off
from diffuse.request import GenerationRequest
from diffuse.weights import Checkpoint

_SIZES = 6  # original height and width, crop top and left, target height and width


class Texts(NamedTuple):
    """What each text encoder reads."""

    first: str
    second: str


class StableDiffusionXL(LatentPipeline):
    """A checkpoint of this family. The U-Net attends to the penultimate states of both text encoders side by side; the
    pooled text of the second and the request's sizes are added to the timestep's embedding."""

    components = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
    request_fields = LatentPipeline.request_fields | {
        "prompt_2",
        "negative_prompt_2",
        "original_width",
        "original_height",
        "crop_left",
        "crop_top",
        "target_width",
        "target_height",
    }

    def __init__(self, checkpoint: Checkpoint, memory: Memory) -> None:
        super().__init__(checkpoint, memory)
        self.tokenizers = [CLIPTokenizer.from_folder(checkpoint.path(name)) for name in ("tokenizer", "tokenizer_2")]
        encoders = {name: self.config(clip.CLIPTextConfig, name) for name in ("text_encoder", "text_encoder_2")}
        for tokenizer, config in zip(self.tokenizers, encoders.values(), strict=True):
            self.check_text(tokenizer, config)
        self.check_text_width(sum(config.hidden_size for config in encoders.values()))
        self._check_added(encoders["text_encoder_2"])
        # A checkpoint that does not say was trained so.
        self.zeros_for_absent = bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))
        for name, config in encoders.items():
            self.add(name, clip.CLIPTextModel, config, clip.rename)
        self.add_denoiser()

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Where nothing else is said, the picture imagined is the one made, uncropped."""
        width, height = request.width, request.height
        sizes: dict[str, Any] = {
            "original_width": width,
            "original_height": height,
            "crop_left": 0,
            "crop_top": 0,
            "target_width": width,
            "target_height": height,
        }
        return replace(request, **{name: size for name, size in sizes.items() if getattr(request, name) is None})

    def encode(self, request: GenerationRequest, guided: bool) -> Encoded:
        """`encoder_hidden_states` `[1, T, D + D']`, `text_embeds` `[1, D']` and `time_ids` `[1, 6]`.

        No negative prompt at all stands for zeros where the checkpoint was trained so, and for an empty one elsewhere.
        """
        positive, negative = _texts(request.prompt, request.prompt_2), _negative(request)
        asked = [positive]
        if guided and negative is not None and negative != positive:
            asked.append(negative)
        elif guided and negative is None and not self.zeros_for_absent and positive != Texts("", ""):
            asked.append(Texts("", ""))
        made, cut = self._encode_texts(asked)
        time_ids = _time_ids(self.complete(request))
        states: list[Conditioning] = [{**part, "time_ids": time_ids} for part in made]
        if guided and negative is None and self.zeros_for_absent:
            zeros = {name: torch.zeros_like(value) for name, value in made[0].items()}
            states.append({**zeros, "time_ids": time_ids})
        return Encoded(states[0], states[1] if len(states) > 1 else None, cut)

    def _encode_texts(self, asked: Sequence[Texts]) -> tuple[list[dict[str, Tensor]], list[str]]:
        """For each of `asked`, the states of both encoders and the pooled text; what was cut off."""
        device = self.memory.device("unet")  # each encoder may run elsewhere
        cut: list[str] = []
        hidden: list[list[Tensor]] = [[] for _ in asked]
        pooled: list[Tensor] = []
        for place, (name, tokenizer) in enumerate(
            zip(("text_encoder", "text_encoder_2"), self.tokenizers, strict=True)
        ):
            tokens = tokenizer([texts[place] for texts in asked])
            for kind, texts, end in zip(("prompt", "negative prompt"), asked, tokens.cut, strict=False):
                if place == 0:
                    cut += cut_off(kind, end, tokenizer)
                elif texts.second != texts.first:
                    cut += cut_off(f"second {kind}", end, tokenizer)
            pooled = []
            with self.memory.use(name) as encoder:
                # One text at a time, so that a prompt's states do not depend on what it is encoded with.
                for row, ids in enumerate(tokens.ids.to(self.memory.device(name))):
                    out = encoder(ids[None])
                    hidden[row].append(out.hidden_states[-2].to(device))
                    pooled.append(out.pooled.to(device))
        return [
            {"encoder_hidden_states": torch.cat(states, dim=-1), "text_embeds": text}
            for states, text in zip(hidden, pooled, strict=True)
        ], cut

    def _check_added(self, second: clip.CLIPTextConfig) -> None:
        """Refuses a U-Net whose added conditioning is not the pooled text of `second` and six sizes."""
        unet = self.unet_config
        if unet.addition_embed_type is None:
            raise self.misfit("the unet takes neither sizes nor a pooled text, which model=sdxl gives it")
        if not second.projected:
            raise self.misfit("text_encoder_2 has no projection for the pooled text")
        given = _SIZES * unet.addition_time_embed_dim + second.projection_dim
        if unet.projection_class_embeddings_input_dim != given:
            raise self.misfit(
                f"the unet's added conditioning is {unet.projection_class_embeddings_input_dim} wide; six sizes and "
                f"the pooled text of text_encoder_2 are {given}"
            )


def _texts(first: str, second: str | None) -> Texts:
    return Texts(first, first if second is None else second)


def _negative(request: GenerationRequest) -> Texts | None:
    """None where there is no negative prompt at all."""
    if request.negative_prompt is None and request.negative_prompt_2 is None:
        return None
    return _texts(request.negative_prompt or "", request.negative_prompt_2)


def _time_ids(request: GenerationRequest) -> Tensor:
    """The sizes `[1, 6]` int64, in the order in which the model was trained on them."""
    return torch.tensor(
        [
            [
                request.original_height,
                request.original_width,
                request.crop_top,
                request.crop_left,
                request.target_height,
                request.target_width,
            ]
        ]
    )
