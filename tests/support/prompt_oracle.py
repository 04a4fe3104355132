"""What long and weighted prompts become, by transformers' encoders and plain arithmetic on chunks written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Chunk = Sequence[tuple[str, float]]  # pieces of text, whole words each, and how much they weigh


@torch.no_grad()
def embedded(tokenizer: Any, encoder: Any, chunks: Sequence[Chunk], penultimate: bool) -> tuple[Tensor, Tensor]:
    """The states `[1, n * T, D]` of the chunks, one after the other, and what the encoder gives beside for the first.

    A token's state lies as far from the empty text's, in the same place, as its weight says.
    """

    def encode(ids: list[int]) -> tuple[Tensor, Tensor]:
        ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))
        out = encoder(torch.tensor([ids]), output_hidden_states=True)
        return out.hidden_states[-2] if penultimate else out.last_hidden_state, out[0]

    empty, _ = encode([])
    found = []
    for chunk in chunks:
        pieces = [(tokenizer(text, add_special_tokens=False).input_ids, weight) for text, weight in chunk]
        state, beside = encode([id_ for ids, _ in pieces for id_ in ids])
        weights = [1.0, *(weight for ids, weight in pieces for _ in ids)]
        weights += [1.0] * (state.shape[1] - len(weights))
        found.append((empty + (state - empty) * torch.tensor(weights)[:, None], beside))
    return torch.cat([state for state, _ in found], dim=1), found[0][1]


def sd_embeds(pipeline: Any, positive: Sequence[Chunk], negative: Sequence[Chunk]) -> dict[str, Tensor]:
    """What diffusers' pipelines of Stable Diffusion take for prompts."""
    both = zip(("prompt_embeds", "negative_prompt_embeds"), (positive, negative), strict=True)
    return {name: embedded(pipeline.tokenizer, pipeline.text_encoder, chunks, False)[0] for name, chunks in both}


def sdxl_embeds(pipeline: Any, positive: Sequence[Sequence[Chunk]], negative: Sequence[Sequence[Chunk]]) -> Any:
    """The same for SDXL's, and its refiner's: chunks for each encoder that there is, the last of which pools."""
    encoders = [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)]
    encoders = [pair for pair in encoders if pair[0] is not None]
    made = {}
    for prefix, texts in (("", positive), ("negative_", negative)):
        states = [embedded(*pair, chunks, True) for pair, chunks in zip(encoders, texts, strict=True)]
        made[f"{prefix}prompt_embeds"] = torch.cat([state for state, _ in states], dim=-1)
        made[f"{prefix}pooled_prompt_embeds"] = states[-1][1]
    return made
