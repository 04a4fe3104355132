"""Checkpoints for families of which none ships: half a million weights at most, drawn anew each time, always the same.

Only what every machine computes alike is used to draw them, whole numbers and single products, so that they are the
same to the bit everywhere. They have learned nothing; their pictures are patterns.
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
from diffuse.config.compose import TINY
from diffuse.models.text_encoder.clip import CLIPTextConfig, CLIPTextModel
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

_LATENTS = 4  # channels
_TEXT = 16  # the width of a text encoder
_PROJECTION = 24  # of the pooled text
_SIZE = 8  # the width of each embedded size
_TOKENS = 32  # as the shipped tokenizer makes them
_VOCABULARY = 1640

_SCHEDULE = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

KINDS = ("sd", "sd_flow", "sd_inpaint", "sd_distilled", "sdxl", "sdxl_refiner")


def write(folder: Path, kind: str) -> Path:
    """Writes the checkpoint `kind`, one of `KINDS`, in the diffusers layout; gives its folder back."""
    xl = kind.startswith("sdxl")
    encoders = {
        "sd": ("text_encoder",),
        "sdxl": ("text_encoder", "text_encoder_2"),
        "sdxl_refiner": ("text_encoder_2",),
    }
    texts = encoders.get(kind, ("text_encoder",))
    configs: dict[str, dict[str, Any]] = {
        "unet": {**_unet(kind, _TEXT * len(texts)), "sample_size": 8},
        "vae": _vae(0.13025 if xl else 0.18215),
        **{name: _text_encoder(projected=name.endswith("_2")) for name in texts},
    }
    for seed, (component, config) in enumerate(configs.items()):
        _write_json(folder / component / "config.json", config)
        name = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        weights = _draw(_module(component, config), seed + 10 * KINDS.index(kind))
        save_file(weights, folder / component / f"{name}.safetensors", metadata={"format": "pt"})
    for name in texts:
        shutil.copytree(TINY / "tokenizer", folder / name.replace("text_encoder", "tokenizer"))
    _write_json(folder / "scheduler" / "scheduler_config.json", _FLOW if kind == "sd_flow" else _SCHEDULE)
    _write_json(
        folder / "model_index.json", _index(kind, [*configs, *(t.replace("text_encoder", "tokenizer") for t in texts)])
    )
    return folder


def _index(kind: str, components: list[str]) -> dict[str, Any]:
    pipeline = {"sdxl": "StableDiffusionXLPipeline", "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline"}
    index: dict[str, Any] = {"_class_name": pipeline.get(kind, "StableDiffusionPipeline")}
    if kind == "sdxl_refiner":
        index |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    return {**index, **{name: ["diffuse", name] for name in (*components, "scheduler")}}


def _unet(kind: str, text: int) -> dict[str, Any]:
    xl = kind.startswith("sdxl")
    cross = [False, True, True] if xl else [True, True, False]
    config: dict[str, Any] = {
        "in_channels": 2 * _LATENTS + 1 if kind == "sd_inpaint" else _LATENTS,
        "out_channels": _LATENTS,
        "block_out_channels": [16, 16, 32],
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
        "layers_per_block": 1,
        "attention_head_dim": [2, 2, 4],
        "cross_attention_dim": text,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
    if xl:
        sizes = 5 if kind == "sdxl_refiner" else 6
        config |= {
            "transformer_layers_per_block": [1, 1, 2],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SIZE,
            "projection_class_embeddings_input_dim": sizes * _SIZE + _PROJECTION,
        }
    return config | ({"time_cond_proj_dim": 16} if kind == "sd_distilled" else {})


def _vae(scaling_factor: float) -> dict[str, Any]:
    return {
        "latent_channels": _LATENTS,
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
        "hidden_size": _TEXT,
        "intermediate_size": 2 * _TEXT,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": _TOKENS,
        "hidden_act": "gelu" if projected else "quick_gelu",
        "projection_dim": _PROJECTION,
        "eos_token_id": _VOCABULARY - 1,
    }


def _module(component: str, config: Mapping[str, Any]) -> nn.Module:
    """The module that `config` describes, without storage: its keys and shapes are what is wanted."""
    if component == "unet":
        return skeleton(lambda: UNet2DConditionModel(read_architecture(UNet2DConditionConfig, config, component)))
    if component == "vae":
        return skeleton(lambda: AutoencoderKL(read_architecture(AutoencoderKLConfig, config, component)))
    return skeleton(lambda: CLIPTextModel(read_architecture(CLIPTextConfig, config, component)))


def _draw(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through them, and norms that do something."""
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
