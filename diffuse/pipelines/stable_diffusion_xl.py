"""Stable Diffusion XL: two text encoders, and a denoiser that is told of sizes (Podell et al., "SDXL: Improving Latent
Diffusion Models for High-Resolution Image Synthesis", 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.memory import Memory
from diffuse.models.text_encoder import clip
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.pipelines.latent_diffusion import Encoded, LatentPipeline
from diffuse.sampling import prompts as prompt
from diffuse.sampling.guidance import Conditioning
from diffuse.schema import GenerationRequest

Texts = tuple[str, ...]  # what each text encoder reads


class StableDiffusionXL(LatentPipeline):
    """A checkpoint of this family. The U-Net attends to the penultimate states of its text encoders side by side; the
    pooled text of the last and the request's sizes are added to the timestep's embedding."""

    components: ClassVar[tuple[str, ...]] = (
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "vae",
    )
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
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    told: ClassVar[str] = "six sizes"  # what the denoiser is told beside the pooled text
    told_values: ClassVar[int] = 6

    def __init__(self, checkpoint: Checkpoint, memory: Memory) -> None:
        super().__init__(checkpoint, memory)
        self.tokenizers = [
            CLIPTokenizer.from_folder(checkpoint.part(name).path(name)) for name in self.encoders.values()
        ]
        configs = {name: self.config(clip.CLIPTextConfig, name) for name in self.encoders}
        for tokenizer, config in zip(self.tokenizers, configs.values(), strict=True):
            self.check_text(tokenizer, config)
        self.check_text_width(sum(config.hidden_size for config in configs.values()))
        self._check_added(configs["text_encoder_2"])
        # A checkpoint that does not say was trained so.
        self.zeros_for_absent = bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))
        for name, config in configs.items():
            self.add(name, clip.CLIPTextModel, config, clip.rename)
        self.add_denoiser()

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Where nothing else is said, the picture imagined is the one made, uncropped."""
        width, height = request.width, request.height
        return filled(
            request,
            original_width=width,
            original_height=height,
            crop_left=0,
            crop_top=0,
            target_width=width,
            target_height=height,
        )

    def texts(self, request: GenerationRequest) -> Texts:
        """What the text encoders read of the prompts."""
        return request.prompt, request.prompt if request.prompt_2 is None else request.prompt_2

    def negative_texts(self, request: GenerationRequest) -> Texts | None:
        """What they read of the negative prompts; None where there are none at all."""
        first, second = request.negative_prompt, request.negative_prompt_2
        if first is None and second is None:
            return None
        first = first or ""
        return first, first if second is None else second

    def time_ids(self, request: GenerationRequest, negative: bool) -> list[Any]:
        """What the denoiser is told beside the text, in the order in which it was trained on it."""
        return [
            request.original_height,
            request.original_width,
            request.crop_top,
            request.crop_left,
            request.target_height,
            request.target_width,
        ]

    def encode(self, request: GenerationRequest, guided: bool) -> Encoded:
        """`encoder_hidden_states` `[1, n * T, D + D']` of `n` chunks, `text_embeds` `[1, D']` and `time_ids` `[1, N]`.

        No negative prompt at all stands for zeros where the checkpoint was trained so, and for an empty one elsewhere.
        """
        request = self.complete(request)
        # Not in half precision, in which a size of 1083 pixels has no place.
        ids = [torch.tensor([self.time_ids(request, negative)]) for negative in (False, True)]
        asked = [self.texts(request)]
        negative = self.negative_texts(request)
        zeros = negative is None and self.zeros_for_absent
        if guided and not zeros:
            asked.append(negative or ("",) * len(self.encoders))
        if asked[0] == asked[-1] and torch.equal(*ids):
            asked = asked[:1]
        made, cut = self._encode_texts(request, asked)
        if guided and zeros:
            made.append({name: torch.zeros_like(value) for name, value in made[0].items()})
        states: list[Conditioning] = [{**part, "time_ids": told} for part, told in zip(made, ids, strict=False)]
        return Encoded(states[0], states[1] if len(states) > 1 else None, cut)

    def _encode_texts(
        self, request: GenerationRequest, asked: Sequence[Texts]
    ) -> tuple[list[dict[str, Tensor]], list[str]]:
        """For each of `asked`, the states of the encoders and the pooled text; what was cut off."""
        prompts = prompt.same_length(
            [
                prompt.read(tokenizer, texts[place], request)
                for place, tokenizer in enumerate(self.tokenizers)
                for texts in asked
            ]
        )
        cut: list[str] = []
        hidden: list[list[Tensor]] = [[] for _ in asked]
        pooled: list[Tensor] = []
        for place, name in enumerate(self.encoders):
            ours = prompts[place * len(asked) : (place + 1) * len(asked)]
            for kind, texts, read in zip(("prompt", "negative prompt"), asked, ours, strict=False):
                if place == 0:
                    cut += prompt.cut_off(kind, read)
                elif texts[place] != texts[0]:
                    cut += prompt.cut_off(f"second {kind}", read)
            made = self.encoded(name, ours, penultimate_state)
            for row, (states, _) in enumerate(made):
                hidden[row].append(states)
            pooled = [text for _, text in made]
        return [
            {"encoder_hidden_states": torch.cat(states, dim=-1), "text_embeds": text}
            for states, text in zip(hidden, pooled, strict=True)
        ], cut

    def _check_added(self, last: clip.CLIPTextConfig) -> None:
        """Refuses a U-Net whose added conditioning is not the pooled text of `last` and what it is told beside."""
        unet = self.unet_config
        if unet.addition_embed_type is None:
            raise self.misfit("the unet takes neither sizes nor a pooled text, which this family gives it")
        if not last.projected:
            raise self.misfit("text_encoder_2 has no projection for the pooled text")
        given = self.told_values * unet.addition_time_embed_dim + last.projection_dim
        if unet.projection_class_embeddings_input_dim != given:
            raise self.misfit(
                f"the unet's added conditioning is {unet.projection_class_embeddings_input_dim} wide; {self.told} and "
                f"the pooled text of text_encoder_2 are {given}"
            )


def filled(request: GenerationRequest, **values: Any) -> GenerationRequest:
    """The request with `values` in those fields that are None."""
    return replace(request, **{name: value for name, value in values.items() if getattr(request, name) is None})


def penultimate_state(output: clip.CLIPTextOutput) -> Tensor:
    """Of what a text encoder gives, the states that this family's U-Net attends to."""
    return output.hidden_states[-2]
