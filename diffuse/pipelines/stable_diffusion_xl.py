"""Stable Diffusion XL: two text encoders, and a denoiser that also takes sizes (Podell et al., "SDXL: Improving Latent
Diffusion Models for High-Resolution Image Synthesis", 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffuse.models.text_encoder import clip
from diffuse.pipelines import clip_prompts
from diffuse.pipelines.latent_diffusion import (
    CLIP,
    CLIP_WITH_PROJECTION,
    TOKENIZER,
    UNET,
    VAE,
    EncodedPrompts,
    LatentDiffusion,
)
from diffuse.sampling.guidance import Conditioning
from diffuse.schema import GenerationRequest

Texts = tuple[str, ...]  # one for each text encoder
_OTHER_FAMILY: dict[float, str] = {6: "sdxl", 5: "sdxl_refiner"}  # the one that gives so many numbers beside the text


class StableDiffusionXL(LatentDiffusion):
    """A checkpoint of this family. The U-Net attends to the penultimate states of its text encoders side by side; the
    pooled text of the last and the request's sizes are added to the timestep's embedding."""

    components = {  # noqa: RUF012
        "text_encoder": CLIP,
        "text_encoder_2": CLIP_WITH_PROJECTION,
        "tokenizer": TOKENIZER,
        "tokenizer_2": TOKENIZER,
        "unet": UNET,
        "vae": VAE,
    }
    request_fields = LatentDiffusion.request_fields | {
        "clip_skip",
        "prompt_2",
        "negative_prompt_2",
        "original_width",
        "original_height",
        "crop_left",
        "crop_top",
        "target_width",
        "target_height",
    }
    time_id_names: ClassVar[str] = "six sizes"  # for messages
    time_id_count: ClassVar[int] = 6

    @property
    def zeros_for_no_prompt(self) -> bool:
        """True where the denoiser learned zeros for no prompt, as it did in a checkpoint that does not say."""
        return bool(self.checkpoint.index.get("force_zeros_for_empty_prompt", True))

    @property
    def pooled_width(self) -> int | None:
        """See `LatentDiffusion`."""
        width: int = self.configs[self.encoders[-1]].projection_dim
        return width

    def added_conditioning(self, request: GenerationRequest, negative: bool) -> dict[str, Tensor]:
        """Returns the time ids, `[1, 6]`. Not in half precision, in which a size of 1083 pixels has no place."""
        return {"time_ids": torch.tensor([self.time_ids(self.complete(request), negative)])}

    def check_conditioning(self) -> None:
        """See `LatentDiffusion`: the U-Net takes the pooled text of the last encoder, and the time ids."""
        unet, last = self.unet_config, self.encoders[-1]
        config: clip.CLIPTextConfig = self.configs[last]
        if unet.addition_embed_type is None:
            raise self.mismatch("the unet takes neither sizes nor a pooled text, which this family gives it")
        assert unet.addition_time_embed_dim is not None  # as with every `addition_embed_type`
        width = self.time_id_count * unet.addition_time_embed_dim + config.projection_dim
        taken = unet.projection_class_embeddings_input_dim
        if taken != width:
            numbers = (taken or 0) - config.projection_dim
            raise self.mismatch(
                f"the unet's added conditioning is {taken} wide; {self.time_id_names} and the pooled text of {last} "
                f"are {width}",
                _OTHER_FAMILY.get(numbers / unet.addition_time_embed_dim, ""),
            )

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Fills the sizes that are open: the image imagined is the one made, uncropped."""
        width, height = request.width, request.height
        return fill(
            request,
            original_width=width,
            original_height=height,
            crop_left=0,
            crop_top=0,
            target_width=width,
            target_height=height,
        )

    def check(self, request: GenerationRequest) -> None:
        """See `DiffusionPipeline`."""
        super().check(request)
        # Even without skipping, the states are those of the last layer but one.
        layers = min(self.configs[name].num_hidden_layers for name in self.encoders)
        clip_prompts.check_clip_skip(request, layers - 1)

    def scaled(self, z: Tensor, inpaints: bool = False) -> Tensor:
        """See `LatentDiffusion`; in a picture that is painted into, the statistics have no part in the reference."""
        statistics = None if inpaints else self._latent_statistics(z)
        if statistics is None:
            return super().scaled(z, inpaints)
        mean, std = statistics
        return (z - mean) * self.vae_config.scaling_factor / std

    def unscaled(self, latents: Tensor) -> Tensor:
        """See `LatentDiffusion`."""
        statistics = self._latent_statistics(latents)
        if statistics is None:
            return super().unscaled(latents)
        mean, std = statistics
        return latents * std / self.vae_config.scaling_factor + mean

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the published mean and standard deviation of each channel, `[1, C, 1, 1]` each; None without both.

        The reference knows them in this family alone.
        """
        config = self.vae_config
        if config.latents_mean is None or config.latents_std is None:
            return None
        mean, std = (
            latents.new_tensor(each)[None, :, None, None] for each in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def texts(self, request: GenerationRequest) -> Texts:
        """Returns the prompt for each text encoder."""
        return request.prompt, request.prompt if request.prompt_2 is None else request.prompt_2

    def negative_texts(self, request: GenerationRequest) -> Texts | None:
        """Returns the negative prompt for each text encoder; None where there are none at all."""
        first, second = request.negative_prompt, request.negative_prompt_2
        if first is None and second is None:
            return None
        first = first or ""
        return first, first if second is None else second

    def time_ids(self, request: GenerationRequest, negative: bool) -> list[Any]:
        """Returns the numbers that the denoiser takes beside the text, in the order in which it was trained."""
        return [
            request.original_height,
            request.original_width,
            request.crop_top,
            request.crop_left,
            request.target_height,
            request.target_width,
        ]

    def encode_prompts(self, request: GenerationRequest, guided: bool) -> EncodedPrompts:
        """Encodes the prompts as `encoder_hidden_states` `[1, n * T, D + D']` of `n` chunks, `text_embeds` `[1, D']`
        and `time_ids` `[1, 6]`.

        No negative prompt at all stands for zeros where the checkpoint was trained so, and for an empty one elsewhere.
        """
        request = self.complete(request)
        added = [self.added_conditioning(request, negative) for negative in (False, True)]
        same_sizes = torch.equal(*(each["time_ids"] for each in added))
        texts = [self.texts(request)]
        negative = self.negative_texts(request)
        use_zeros = negative is None and self.zeros_for_no_prompt
        if guided and not use_zeros:
            texts.append(negative or ("",) * len(self.encoders))
        if texts[0] == texts[-1] and same_sizes and not request.clip_skip:
            texts = texts[:1]
        states, warnings = self._encode_texts(request, texts)
        if guided and use_zeros:
            states.append({name: torch.zeros_like(value) for name, value in states[0].items()})
        conditioning: list[Conditioning] = [{**state, **each} for state, each in zip(states, added, strict=False)]
        return EncodedPrompts(conditioning[0], conditioning[1] if len(conditioning) > 1 else None, warnings)

    def _encode_texts(
        self, request: GenerationRequest, texts: Sequence[Texts]
    ) -> tuple[list[dict[str, Tensor]], list[str]]:
        """Encodes the positive, and perhaps the negative texts. Returns the states of each, and warnings."""
        prompts = clip_prompts.same_length(
            [
                clip_prompts.tokenize(self.words[encoder], each[place], request)
                for place, encoder in enumerate(self.encoders)
                for each in texts
            ]
        )
        warnings: list[str] = []
        hidden: list[list[Tensor]] = [[] for _ in texts]
        pooled: list[Tensor] = []
        for place, encoder in enumerate(self.encoders):
            own_prompts = prompts[place * len(texts) : (place + 1) * len(texts)]
            for kind, each, prompt in zip(("prompt", "negative prompt"), texts, own_prompts, strict=False):
                if place == 0:
                    warnings += clip_prompts.cut_warnings(kind, prompt)
                elif each[place] != each[0]:
                    warnings += clip_prompts.cut_warnings(f"second {kind}", prompt)
            own_prompts = clip_prompts.skip_layers(own_prompts, request)
            encode = partial(clip_prompts.encode, select_state=penultimate_state, device=self.memory.device(encoder))
            outputs = self.prompt_cache.encode(encoder, own_prompts, encode)
            for row, (state, _) in zip(hidden, outputs, strict=True):
                row.append(state)
            pooled = [text for _, text in outputs]
        return [
            {"encoder_hidden_states": torch.cat(states, dim=-1), "text_embeds": text}
            for states, text in zip(hidden, pooled, strict=True)
        ], warnings


def fill(request: GenerationRequest, **values: Any) -> GenerationRequest:
    """Returns the request with `values` in those fields that are None."""
    return replace(request, **{name: value for name, value in values.items() if getattr(request, name) is None})


def penultimate_state(output: clip.CLIPTextOutput) -> Tensor:
    """Selects the states `[B, T, D]` that this family's U-Net attends to: those of the last layer but one."""
    return output.hidden_states[-2]
