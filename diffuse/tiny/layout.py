"""The tiny checkpoint's architecture as the published configuration files say it, and its folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn

TEXT_LENGTH = 32  # tokens

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "block_out_channels": [48, 96, 176],
    "layers_per_block": 1,
    "attention_head_dim": [2, 3, 4],
    "cross_attention_dim": 128,
    "use_linear_projection": True,
    "norm_num_groups": 16,
    "norm_eps": 1e-05,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [12, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "act_fn": "silu",
    "sample_size": 64,
    "force_upcast": False,
}

TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 1640,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_LENGTH,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "projection_dim": 128,
    "bos_token_id": 1638,
    "eos_token_id": 1639,
    "pad_token_id": 0,
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "clip_sample": False,
}

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.39.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def build_config(config: type[Any], published: dict[str, Any]) -> Any:
    """Builds the dataclass `config` from the keys of a published configuration."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in published.items() if k in names})


def alphas_cumprod() -> Tensor:
    """Returns the noise schedule `[1000]` of `SCHEDULER`: the share of signal left at each timestep, 0 at the last."""
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def byte_alphabet() -> list[str]:
    """Returns one printable character for each byte; `!` comes first, as in CLIP's vocabulary."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> None:
    """Writes `vocab.json`, `merges.txt` and their settings, in the layout of published CLIP tokenizers."""
    letters = byte_alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    marks = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": "!"}
    settings = {**marks, "add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
    settings |= {"model_max_length": TEXT_LENGTH, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(m) for m in merges), ""]), encoding="utf-8"
    )
    write_json(folder / "special_tokens_map.json", marks)
    write_json(folder / "tokenizer_config.json", settings)


def write_tiny_checkpoint(
    folder: Path, tokenizer: Path, vae: nn.Module, modules: nn.ModuleDict, scaling_factor: float
) -> None:
    """Writes the whole checkpoint, weights in half precision."""
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "vae" / "config.json", {**VAE, "scaling_factor": scaling_factor})
    write_json(folder / "unet" / "config.json", UNET)
    write_json(folder / "text_encoder" / "config.json", TEXT_ENCODER)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    for name, module in {"vae": vae, "unet": modules["unet"], "text_encoder": modules["text_encoder"]}.items():
        weights = {key: value.half().contiguous() for key, value in module.state_dict().items()}
        save_file(weights, folder / WEIGHTS[name], metadata={"format": "pt"})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON, as published files have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
