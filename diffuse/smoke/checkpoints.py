"""Checkpoints for families of which none ships: half a million weights at most, drawn anew each time, always the same.

They are drawn with whole numbers and single products only, which every machine computes alike: they are the same
to the bit everywhere. They have learned nothing; their pictures are patterns.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.weights import skeleton
from diffuse.config.groups import TINY
from diffuse.models.text_encoder.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffuse.smoke.families import LATENT_CHANNELS, PROJECTION, TEXT_WIDTH, SmokeCheckpoint

_TOKENS = 32  # as the shipped tokenizer makes them
_VOCABULARY = 1640


def write_checkpoint(folder: Path, checkpoint: SmokeCheckpoint) -> Path:
    """Writes a checkpoint in the diffusers layout and returns its folder."""
    encoders = checkpoint.text_encoders
    configs: dict[str, dict[str, Any]] = {
        "unet": _unet(checkpoint),
        "vae": _vae(checkpoint.scaling_factor),
        **{name: _text_encoder(projected=name.endswith("_2")) for name in encoders},
    }
    for number, (component, config) in enumerate(configs.items()):
        _write_json(folder / component / "config.json", config)
        name = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        weights = _draw(_module(component, config), checkpoint.seed + number)
        save_file(weights, folder / component / f"{name}.safetensors", metadata={"format": "pt"})
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    for name in tokenizers:
        shutil.copytree(TINY / "tokenizer", folder / name)
    _write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    components = {name: ["diffuse", name] for name in (*configs, *tokenizers, "scheduler")}
    _write_json(folder / "model_index.json", {**checkpoint.index, **components})
    return folder


def _unet(checkpoint: SmokeCheckpoint) -> dict[str, Any]:
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": [16, 16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": [2, 2, 4],
        "cross_attention_dim": TEXT_WIDTH * len(checkpoint.text_encoders),
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "sample_size": 8,
        **checkpoint.unet,
    }


def _vae(scaling_factor: float) -> dict[str, Any]:
    return {
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": scaling_factor,
    }


def _text_encoder(*, projected: bool) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "vocab_size": _VOCABULARY,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": _TOKENS,
        "hidden_act": "gelu" if projected else "quick_gelu",
        "projection_dim": PROJECTION,
        "eos_token_id": _VOCABULARY - 1,
    }


def _module(component: str, config: Mapping[str, Any]) -> nn.Module:
    """Builds the module that `config` describes, without storage: its keys and shapes are needed."""
    if component == "unet":
        return skeleton(lambda: UNet2DConditionModel(read_architecture(UNet2DConditionConfig, config, component)))
    if component == "vae":
        return skeleton(lambda: AutoencoderKL(read_architecture(AutoencoderKLConfig, config, component)))
    encoder = CLIPTextModelWithProjection if component.endswith("_2") else CLIPTextModel
    return skeleton(lambda: encoder(read_architecture(CLIPTextConfig, config, component)))


def _draw(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draws weights that keep the size of their inputs, and norms that do something."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return {key: _weight(key, value.shape, generator) for key, value in sorted(module.state_dict().items())}


def _weight(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(shape, generator=generator) * 2 - 1  # 24 random bits, and a variance of 1/3
    if key.endswith("embedding.weight"):
        return drawn * math.sqrt(3)
    if len(shape) > 1:
        return drawn * math.sqrt(3 / math.prod(shape[1:]))
    return 1 + 0.3 * drawn if key.endswith("weight") else 0.2 * drawn


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
