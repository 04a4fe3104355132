"""Single files in the layout of the first implementations, written from folders in the diffusers layout.

Names are made by going through the blocks in the order of the forward pass, as those implementations number them; the
product reads them the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def component(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a component; those of a text encoder with their prefix."""
    tensors: dict[str, Tensor] = {}
    for path in (folder / name).glob("*.safetensors"):
        tensors |= load_file(path)
    if name.startswith("text_encoder"):
        known = ("text_model.", "text_projection.")
        tensors = {key if key.startswith(known) else f"text_model.{key}": tensor for key, tensor in tensors.items()}
    return tensors


def config(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "config.json").read_text())
    return found


def unet_modules(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the modules of a U-Net, as diffusers and as the first implementations call them."""
    yield from ENDS.items()

    def resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{ours}.{name}", f"{theirs}.{other}") for name, other in RESNET.items())

    count, levels = settings["layers_per_block"], len(settings["block_out_channels"])
    place = 1
    for level, kind in enumerate(settings["down_block_types"]):
        for index in range(count):
            yield from resnet(f"down_blocks.{level}.resnets.{index}", f"input_blocks.{place}.0")
            if "Cross" in kind:
                yield f"down_blocks.{level}.attentions.{index}", f"input_blocks.{place}.1"
            place += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{place}.0.op"
            place += 1
    yield from resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from resnet("mid_block.resnets.1", "middle_block.2")
    place = 0
    for level, kind in enumerate(settings["up_block_types"]):
        for index in range(count + 1):
            yield from resnet(f"up_blocks.{level}.resnets.{index}", f"output_blocks.{place}.0")
            if "Cross" in kind:
                yield f"up_blocks.{level}.attentions.{index}", f"output_blocks.{place}.1"
            if index == count and level < levels - 1:
                last = 2 if "Cross" in kind else 1
                yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{place}.{last}.conv"
            place += 1


def vae_modules(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the modules of an autoencoder under both names."""
    levels = len(settings["block_out_channels"])
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_in", f"{side}.conv_in"
        yield f"{side}.conv_out", f"{side}.conv_out"
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        for index in range(2):
            yield from _vae_resnet(f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}")
        attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        for name, other in attention.items():
            yield f"{side}.mid_block.attentions.0.{name}", f"{side}.mid.attn_1.{other}"
    for level in range(levels):
        for index in range(settings["layers_per_block"] + 1):
            down, up = f"down_blocks.{level}.resnets.{index}", f"up_blocks.{levels - 1 - level}.resnets.{index}"
            yield from _vae_resnet(f"encoder.{down}", f"encoder.down.{level}.block.{index}")
            yield from _vae_resnet(f"decoder.{up}", f"decoder.up.{level}.block.{index}")
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.downsample.conv"
        yield f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv", f"decoder.up.{level}.upsample.conv"
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))


def _vae_resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
    yield from ((f"{ours}.{name}", f"{theirs}.{other}") for name, other in names.items())


def renamed(tensors: Mapping[str, Tensor], modules: Iterator[tuple[str, str]]) -> dict[str, Tensor]:
    """The tensors under their other names; every one has to have one."""
    pairs = list(modules)
    result = {}
    for key, tensor in tensors.items():
        ours, theirs = max((pair for pair in pairs if key.startswith(f"{pair[0]}.")), key=lambda pair: len(pair[0]))
        result[theirs + key[len(ours) :]] = tensor
    return result


def open_clip(tensors: Mapping[str, Tensor], more_layers: int = 0) -> dict[str, Tensor]:
    """A text encoder as OpenCLIP stores it, with so many layers more than are used."""
    layers = 1 + max(int(key.split(".")[3]) for key in tensors if ".layers." in key)
    result = {
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "logit_scale": torch.tensor(4.6),
    }
    for kind in ("weight", "bias"):
        result[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
    for index in range(layers + more_layers):
        layer = f"text_model.encoder.layers.{min(index, layers - 1)}"
        for kind in ("weight", "bias"):
            fused = [tensors[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            block = f"transformer.resblocks.{index}"
            result[f"{block}.attn.in_proj_{kind}"] = torch.cat(fused)
            result[f"{block}.attn.out_proj.{kind}"] = tensors[f"{layer}.self_attn.out_proj.{kind}"]
            result[f"{block}.ln_1.{kind}"] = tensors[f"{layer}.layer_norm1.{kind}"]
            result[f"{block}.ln_2.{kind}"] = tensors[f"{layer}.layer_norm2.{kind}"]
            result[f"{block}.mlp.c_fc.{kind}"] = tensors[f"{layer}.mlp.fc1.{kind}"]
            result[f"{block}.mlp.c_proj.{kind}"] = tensors[f"{layer}.mlp.fc2.{kind}"]
    width = result["positional_embedding"].shape[1]
    projection = tensors.get("text_projection.weight")
    result["text_projection"] = torch.eye(width) if projection is None else projection.T
    return result


def tensors_of(folder: Path, family: str) -> dict[str, Tensor]:
    """The tensors of a single file of `sd1`, `sd2`, `sdxl` or `refiner`, with what such files hold beside."""
    unet = renamed(component(folder, "unet"), unet_modules(config(folder, "unet")))
    vae = renamed(component(folder, "vae"), vae_modules(config(folder, "vae")))
    for key in [key for key, tensor in vae.items() if ".attn_1." in key and tensor.ndim == 2]:
        vae[key] = vae[key][:, :, None, None]  # they are convolutions there
    parts = {"model.diffusion_model.": unet, "first_stage_model.": vae}
    if family == "sd1":
        text = component(folder, "text_encoder")
        text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        parts["cond_stage_model.transformer."] = text
    elif family == "sd2":
        parts["cond_stage_model.model."] = open_clip(component(folder, "text_encoder"), more_layers=1)
    elif family == "sdxl":
        parts["conditioner.embedders.0.transformer."] = component(folder, "text_encoder")
        parts["conditioner.embedders.1.model."] = open_clip(component(folder, "text_encoder_2"))
    else:
        parts["conditioner.embedders.0.model."] = open_clip(component(folder, "text_encoder_2"))
    tensors = {prefix + key: tensor for prefix, part in parts.items() for key, tensor in part.items()}
    tensors |= {"betas": torch.linspace(0, 1, 1000), "model_ema.decay": torch.tensor(0.9999)}
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


def write(folder: Path, path: Path, family: str, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes the checkpoint in `folder` as one file."""
    save_file(tensors_of(folder, family), path, metadata=dict(metadata or {}))
    return path
