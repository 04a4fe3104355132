"""Single files of LTX-2 in the authors' layout, made from a folder as diffusers saves it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gguf_files import lightricks_name
from safetensors.torch import load_file, save_file
from torch import Tensor

PARTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
_VOCODER = (
    ("upsamplers.", "ups."),
    ("resnets.", "resblocks."),
    ("conv_in.", "conv_pre."),
    ("conv_out.", "conv_post."),
    ("act_out.", "act_post."),
)
_SIZES = {"spatial": "space", "temporal": "time", "spatiotemporal": "all"}


def authors_key(part: str, key: str, levels: int) -> str:
    """The authors' key; `levels` of the video autoencoder's encoder."""
    if part == "transformer":
        key = lightricks_name(key)
    if part == "connectors":
        key = re.sub(r"\.norm_([qk])\.", r".\1_norm.", key)
        if "text_proj_in." in key:
            return "text_embedding_projection." + key.replace("text_proj_in.", "aggregate_embed.")
        key = re.sub(r"^(video|audio)_connector\.", r"\1_embeddings_connector.", key)
        key = key.replace(".transformer_blocks.", ".transformer_1d_blocks.")
    if part in ("vae", "audio_vae") and key.startswith("latents_"):
        return f"{part}.per_channel_statistics.{key[8:]}-of-means"
    if part == "vae":
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", lambda m: f"DOWN.{2 * int(m[1]) + 1}.", key)
        key = re.sub(r"down_blocks\.(\d+)\.", lambda m: f"DOWN.{2 * int(m[1])}.", key)
        key = key.replace("encoder.mid_block.", f"encoder.DOWN.{2 * levels}.").replace("DOWN", "down_blocks")
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"UP.{2 * int(m[1]) + 1}.", key)
        key = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"UP.{2 * int(m[1]) + 2}.", key)
        key = key.replace("decoder.mid_block.", "decoder.UP.0.").replace("UP", "up_blocks")
        key = key.replace(".resnets.", ".res_blocks.")
    if part == "vocoder":
        for new, old in _VOCODER:
            key = re.sub(r"(^|\.)" + re.escape(new), lambda m, old=old: m[1] + old, key)
        key = key.replace(".downsample.filter", ".downsample.lowpass.filter")
    prefix = "model.diffusion_model" if part in ("transformer", "connectors") else part
    return f"{prefix}.{key}"


def _blocks(levels: list[int], kinds: list[str], options: list[dict[str, Any]]) -> list[Any]:
    blocks: list[Any] = [["res_x", {"num_layers": levels[0]}]]
    for layers, kind, option in zip(levels[1:], kinds, options, strict=True):
        blocks += [[kind, option], ["res_x", {"num_layers": layers}]]
    return blocks


def header(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings in the header of a file, from those of the folder."""
    t, c, v, a, w = (configs[part] for part in PARTS)
    later = not t["use_prompt_embeddings"]
    same = (
        *("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels"),
        *("cross_attention_dim", "caption_channels", "audio_num_attention_heads", "audio_attention_head_dim"),
        *("audio_in_channels", "audio_out_channels", "audio_cross_attention_dim", "norm_eps", "rope_type"),
        "timestep_scale_multiplier",
    )
    sizes = "num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers"
    transformer = {name: t[name] for name in same} | {
        "positional_embedding_theta": t["rope_theta"],
        "positional_embedding_max_pos": [t["pos_embed_max_pos"], t["base_height"], t["base_width"]],
        "audio_positional_embedding_max_pos": [t["audio_pos_embed_max_pos"]],
        "av_ca_timestep_scale_multiplier": float(t["cross_attn_timestep_scale_multiplier"]),
        "frequencies_precision": "float64" if t["rope_double_precision"] else "float32",
        "use_middle_indices_grid": True,
        "caption_channels": c["caption_channels"],
        "connector_positional_embedding_max_pos": [c["connector_rope_base_seq_len"]],
        **{f"connector_{name}": c[f"video_connector_{name}"] for name in sizes},
    }
    if later:
        transformer |= {
            "apply_gated_attention": t["gated_attn"],
            "cross_attention_adaln": t["cross_attn_mod"],
            "connector_apply_gated_attention": c["video_gated_attn"],
            "caption_proj_before_connector": True,
            **{f"audio_connector_{name}": c[f"audio_connector_{name}"] for name in sizes},
        }
    widths = [v["latent_channels"], *v["block_out_channels"]]
    down = [{"multiplier": after // before} for before, after in pairwise(widths)]
    up = [
        {"multiplier": factor} | ({"residual": True} if residual else {})
        for factor, residual in zip(v["upsample_factor"], v["upsample_residual"], strict=True)
    ]
    vae = {
        "latent_channels": v["latent_channels"],
        "encoder_blocks": _blocks(
            v["layers_per_block"], [f"compress_{_SIZES[kind]}_res" for kind in v["downsample_type"]], down
        ),
        "decoder_blocks": _blocks(
            v["decoder_layers_per_block"], [f"compress_{_SIZES[kind]}" for kind in reversed(v["upsample_type"])], up
        ),
        "encoder_base_channels": v["latent_channels"],
        "decoder_base_channels": v["decoder_block_out_channels"][0] // v["upsample_factor"][0],
        "patch_size": v["patch_size"],
        "causal_decoder": v["decoder_causal"],
        "timestep_conditioning": v["timestep_conditioning"],
        "spatial_padding_mode": v["decoder_spatial_padding_mode"],
    }
    sound = {
        "ch": a["base_channels"],
        "ch_mult": a["ch_mult"],
        "z_channels": a["latent_channels"],
        "mel_bins": a["mel_bins"],
        "resolution": a["resolution"],
        "num_res_blocks": a["num_res_blocks"],
    }
    audio = {
        "model": {"params": {"ddconfig": sound, "sampling_rate": a["sample_rate"]}},
        "preprocessing": {"stft": {"hop_length": a["mel_hop_length"]}},
    }

    def generator(prefix: str) -> dict[str, Any]:
        return {
            "upsample_initial_channel": w[f"{prefix}hidden_channels"],
            "upsample_rates": w[f"{prefix}upsample_factors"],
            "resblock_kernel_sizes": w[f"{prefix}resnet_kernel_sizes"],
            "resblock_dilation_sizes": w[f"{prefix}resnet_dilations"],
        }

    vocoder: dict[str, Any] = generator("")
    if later:
        rates = {name: w[name] for name in ("input_sampling_rate", "output_sampling_rate", "hop_length")}
        vocoder = {
            "vocoder": vocoder,
            "bwe": generator("bwe_") | rates | {"n_fft": w["filter_length"], "num_mels": w["num_mel_channels"]},
        }
    return {"transformer": transformer, "vae": vae, "audio_vae": audio, "vocoder": vocoder}


def read(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """The tensors and the settings of the components that a file holds."""
    tensors, configs = {}, {}
    for part in PARTS:
        (file,) = (folder / part).glob("*.safetensors")
        tensors[part], configs[part] = load_file(file), json.loads((folder / part / "config.json").read_text())
    return tensors, configs


def write(folder: Path, file: Path, *, without: tuple[str, ...] = (), **more: Tensor) -> Path:
    """Writes the components of a folder as one file; `more` are further tensors."""
    tensors, configs = read(folder)
    levels = len(configs["vae"]["block_out_channels"])
    content = {
        authors_key(part, key, levels): tensor
        for part in PARTS
        if part not in without
        for key, tensor in tensors[part].items()
    }
    content["vae.per_channel_statistics.mean-of-stds"] = torch.zeros(configs["vae"]["latent_channels"])
    version = "2.0.0" if configs["transformer"]["use_prompt_embeddings"] else "2.3.0"
    metadata = {"config": json.dumps(header(configs)), "model_version": version}
    save_file({key: each.contiguous() for key, each in (content | more).items()}, file, metadata)
    return file
