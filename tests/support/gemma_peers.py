"""Tiny random Gemma 3 models of transformers, and ours with their settings and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaTokenizerFast,
)

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.text_encoder import gemma3

WIDTH, LAYERS, VOCABULARY = 32, 7, 300  # of seven layers the sixth is global


def text_settings(**changes: Any) -> dict[str, Any]:
    """A window shorter than the prompts, grouped heads, a head width unlike width / heads, an unusual scale."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    return settings | changes


def randomise(module: nn.Module, seed: int = 1) -> nn.Module:
    """Draws every parameter, so that none keeps a value with which a mistake could agree by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if noise.ndim < 2 else noise / noise[0].numel() ** 0.5)
    return module.eval()


def text_peer(**changes: Any) -> Gemma3TextModel:
    return randomise(Gemma3TextModel(Gemma3TextConfig(**text_settings(**changes))))


def whole_peer(vocabulary: int = VOCABULARY) -> Gemma3ForConditionalGeneration:
    """The model as it is published, with a vision tower."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=text_settings(vocab_size=vocabulary),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=vocabulary - 3,
        eoi_token_index=vocabulary - 2,
        image_token_index=vocabulary - 1,
    )
    return randomise(Gemma3ForConditionalGeneration(config))


def our_text_model(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> gemma3.Gemma3TextModel:
    with torch.device("meta"):
        module = gemma3.Gemma3TextModel(
            read_architecture(gemma3.Gemma3TextConfig, settings, "text_encoder/config.json")
        )
    renamed = {gemma3.rename(key): tensor for key, tensor in weights.items()}
    module.load_state_dict({key: t for key, t in renamed.items() if key is not None}, strict=True, assign=True)
    return module.eval()


def padded(lengths: list[int], size: int) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, size]` of texts of some lengths, padded on the left."""
    mask = (torch.arange(size) >= size - torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, VOCABULARY - 3, mask.shape, generator=torch.Generator().manual_seed(5))
    return ids * mask, mask


def tokenizer_peer(**settings: Any) -> GemmaTokenizerFast:
    """A tokenizer of a few merges in the form of the published one."""
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("a", "n"), ("in", "g"), ("r", "o")]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    words += [*(chr(code) for code in range(33, 127)), *("".join(pair) for pair in merges)]
    return GemmaTokenizerFast(vocab={word: number for number, word in enumerate(words)}, merges=merges, **settings)
