"""Small checkpoints in the diffusers layout that a single file can hold too, and the same weights as they are exported.

Made by the modules of this package, which is quick; what diffusers makes of such files is compared elsewhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ldm_files
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.weights import skeleton
from diffuse.config.groups import TINY
from diffuse.models.text_encoder.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

FAMILIES = {"sd1": "sd1", "sd2": "sd2", "inpainting": "sd1", "sdxl": "sdxl", "refiner": "refiner"}
"""The name of each, and the layout of its single file."""
_NETWORKS: dict[str, tuple[type[Any], type[Any]]] = {
    "unet": (UNet2DConditionModel, UNet2DConditionConfig),
    "vae": (AutoencoderKL, AutoencoderKLConfig),
    "text_encoder": (CLIPTextModel, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextConfig),
}
_WIDTH = 64
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def configs(family: str) -> dict[str, dict[str, Any]]:
    """The settings of each component."""
    is_xl = family in ("sdxl", "refiner")
    first = family in ("sd1", "inpainting")
    unet: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 9 if family == "inpainting" else 4,
        "out_channels": 4,
        "block_out_channels": [_WIDTH, _WIDTH],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 8 if first else [1, 1],
        "cross_attention_dim": 2 * _WIDTH if family == "sdxl" else _WIDTH,
        "use_linear_projection": not first,
        "sample_size": 32,
    }
    if is_xl:
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": (5 if family == "refiner" else 6) * 256 + _WIDTH,
        }
    vae = {
        "_class_name": "AutoencoderKL",
        "layers_per_block": 1,
        "latent_channels": 4,
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "scaling_factor": 0.13025 if is_xl else 0.18215,
        "force_upcast": is_xl,
        "sample_size": 64,
    }
    text = {
        "vocab_size": 1640,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "max_position_embeddings": 32,
        "projection_dim": _WIDTH,
        "eos_token_id": 2,  # as published files say
    }
    found = {"unet": unet, "vae": vae}
    if family != "refiner":
        found["text_encoder"] = {**text, "hidden_act": "gelu" if family == "sd2" else "quick_gelu"}
    if is_xl:
        found["text_encoder_2"] = {**text, "hidden_act": "gelu"}
    return found


def build(folder: Path, family: str) -> Path:
    """Writes a checkpoint in the diffusers layout."""
    generator = torch.Generator().manual_seed(len(family))
    found = configs(family)
    for name, config in found.items():
        network, kind = _NETWORKS[name]
        architecture = read_architecture(kind, config, name)
        shapes = skeleton(lambda network=network, architecture=architecture: network(architecture)).state_dict()
        weights = {key: _draw(key, tuple(each.shape), generator) for key, each in shapes.items()}
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        save_file(weights, folder / name / f"{stem}.safetensors")
    for name in found:
        if name.startswith("text"):
            shutil.copytree(TINY / "tokenizer", folder / name.replace("text_encoder", "tokenizer"))
    (folder / "scheduler").mkdir()
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    kind_of = "EulerDiscreteScheduler" if family in ("sdxl", "refiner") else "DDIMScheduler"
    scheduler = {"_class_name": kind_of, **_SCHEDULER, "prediction_type": prediction, "timestep_spacing": "leading"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    xl, inpaints = "XL" if family in ("sdxl", "refiner") else "", "Inpaint" if family == "inpainting" else ""
    index: dict[str, Any] = {"_class_name": f"StableDiffusion{xl}{inpaints}Pipeline"}
    if family == "refiner":
        index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    elif xl:
        index["force_zeros_for_empty_prompt"] = True
    parts = sorted(each.name for each in folder.iterdir())
    (folder / "model_index.json").write_text(json.dumps(index | {name: ["diffuse", name] for name in parts}))
    return folder


def _draw(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
    return values / values[0].numel() ** 0.5


class _Holder(nn.Module):
    """Holds weights, as an exported module does."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def export(weights: dict[str, Tensor], file: Path) -> Path:
    """Writes tensors as a TorchScript archive of modules of their names."""
    root = _Holder()
    for key, tensor in weights.items():
        *path, last = key.split(".")
        module: nn.Module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, _Holder())
            module = module._modules[name]  # type: ignore[assignment]
        module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    torch.jit.script(root).save(str(file))
    return file


def exports(folder: Path, place: Path, *, xl: bool = False) -> dict[str, Path]:
    """Writes the components of a checkpoint as they were exported, and returns the overrides that name them."""
    place.mkdir()
    prefixes = {"text_encoder": "enc.", "text_encoder_2": "enc."} if xl else {"text_encoder": "text_encoder."}
    prefixes = {name: prefix for name, prefix in prefixes.items() if (folder / name).is_dir()}
    found = {}
    for name in ("unet", "vae", *prefixes):
        weights = ldm_files.component(folder, name)
        if name == "vae":
            inner = "decoder." if xl else ""
            kept = {key: each for key, each in weights.items() if key.startswith(("decoder.", "post_quant_conv."))}
            weights = {("dec." if xl else "vae.") + key.removeprefix(inner): each for key, each in kept.items()}
        else:
            weights = {prefixes.get(name, "unet.") + key: each for key, each in weights.items()}
        found[f"model.{name}.source"] = export(weights, place / f"{name}-cpu.pt")
    return found
