"""The tiny video checkpoint's architecture as LTX-2's published configuration files say it, and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor, nn

from diffuse.models.single_file.ltx2_settings import SCHEDULER
from diffuse.tiny.layout import write_json

TEXT_LENGTH = 32  # tokens, as many as the connectors have registers
_TEXT_WIDTH = 96

TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": _TEXT_WIDTH,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": TEXT_LENGTH,
    "layer_types": ["full_attention"] * 2,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "max_position_embeddings": TEXT_LENGTH,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_local_base_freq": 10000.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

CONNECTORS: dict[str, Any] = {
    "_class_name": "LTX2TextConnectors",
    "caption_channels": _TEXT_WIDTH,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 24,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": TEXT_LENGTH,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 24,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": TEXT_LENGTH,
    "connector_rope_base_seq_len": TEXT_LENGTH,
    "rope_theta": 100.0,
    "rope_double_precision": True,
    "rope_type": "split",
}

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTX2Video",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 64,
    "down_block_types": ["LTX2VideoDownBlock3D"] * 3,
    "block_out_channels": [128, 256, 128],
    "layers_per_block": [0, 0, 0, 0],
    "spatio_temporal_scaling": [True] * 3,
    "downsample_type": ["spatiotemporal", "spatiotemporal", "temporal"],
    "encoder_causal": True,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_block_out_channels": [64, 64, 64],
    "decoder_layers_per_block": [2, 2, 1, 1],
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "upsample_type": ["temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [False] * 3,
    "upsample_factor": [1, 1, 1],
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "timestep_conditioning": False,
    "patch_size": 4,
    "patch_size_t": 1,
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 8,
    "resnet_norm_eps": 1e-06,
    "scaling_factor": 1.0,
}

AUDIO_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTX2Audio",
    "base_channels": 16,
    "output_channels": 2,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_resolutions": None,
    "in_channels": 2,
    "resolution": 32,
    "latent_channels": 2,
    "norm_type": "pixel",
    "causality_axis": "height",
    "dropout": 0.0,
    "mid_block_add_attention": False,
    "sample_rate": 16000,
    "mel_hop_length": 160,
    "is_causal": True,
    "mel_bins": 32,
    "double_z": True,
}

VOCODER: dict[str, Any] = {
    "_class_name": "LTX2Vocoder",
    "in_channels": 64,
    "hidden_channels": 96,
    "out_channels": 2,
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "upsample_factors": [6, 5, 2, 2, 2],
    "resnet_kernel_sizes": [3, 7],
    "resnet_dilations": [[1, 3, 5], [1, 3, 5]],
    "leaky_relu_negative_slope": 0.1,
    "output_sampling_rate": 24000,
}

TRANSFORMER: dict[str, Any] = {
    "_class_name": "LTX2VideoTransformer3DModel",
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "cross_attention_dim": 192,
    "vae_scale_factors": [8, 16, 16],
    "pos_embed_max_pos": 2,
    "base_height": 64,
    "base_width": 64,
    "audio_in_channels": 16,
    "audio_out_channels": 16,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "audio_num_attention_heads": 6,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 96,
    "audio_scale_factor": 4,
    "audio_pos_embed_max_pos": 2,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "num_layers": 6,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "caption_channels": _TEXT_WIDTH,
    "attention_bias": True,
    "attention_out_bias": True,
    "rope_theta": 100.0,
    "rope_double_precision": True,
    "causal_offset": 1,
    "timestep_scale_multiplier": 1000,
    "cross_attn_timestep_scale_multiplier": 1000,
    "rope_type": "split",
}

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "LTX2Pipeline",
    "_diffuse_model": "tiny_video",
    "_diffusers_version": "0.39.0",
    "audio_vae": ["diffusers", "AutoencoderKLLTX2Audio"],
    "connectors": ["ltx2", "LTX2TextConnectors"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Gemma3ForCausalLM"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "LTX2VideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLLTX2Video"],
    "vocoder": ["ltx2", "LTX2Vocoder"],
}

CONFIGS = {
    "text_encoder": TEXT_ENCODER,
    "connectors": CONNECTORS,
    "transformer": TRANSFORMER,
    "vae": VAE,
    "audio_vae": AUDIO_VAE,
    "vocoder": VOCODER,
}
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def weights_file(component: str) -> str:
    """Returns where a component's weights are, in the checkpoint's folder."""
    return f"{component}/{'model' if component == 'text_encoder' else 'diffusion_pytorch_model'}.safetensors"


def make_tokenizer(words: list[str]) -> Tokenizer:
    """Builds a tokenizer of Gemma's kind, in which each of `words`, with the space before it, is one token.

    Other text falls apart into characters, and those that are not here into bytes.
    """
    marked = sorted({f"▁{word}" for word in words})
    merges: dict[tuple[str, str], None] = {}
    for word in marked:  # a word grows from its beginning, a letter at a time
        for end in range(1, len(word)):
            merges[(word[:end], word[end])] = None
    letters = sorted({letter for word in marked for letter in word} | {chr(code) for code in range(33, 127)})
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Gemma has no mark before the first word. Here it has one, so that a word is the same token wherever it stands.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(_SPECIAL))
    begin = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[begin])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.json` and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    # Of this class, that file alone counts; transformers' class for Gemma leaves out the mark before the first word.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False}
    settings |= {"model_max_length": TEXT_LENGTH, "padding_side": "left"}
    write_json(folder / "tokenizer_config.json", {**marks, **settings})


def write_tiny_video_checkpoint(folder: Path, tokenizer: Tokenizer, modules: nn.ModuleDict) -> None:
    """Writes the whole checkpoint, weights in half precision; statistics of latents in full."""
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_tokenizer(folder / "tokenizer", tokenizer)
    vocabulary = {"vocab_size": tokenizer.get_vocab_size()}
    for name, config in CONFIGS.items():
        write_json(folder / name / "config.json", {**config, **(vocabulary if name == "text_encoder" else {})})
        weights = {key: _stored(key, value) for key, value in modules[name].state_dict().items()}
        if name == "text_encoder":
            weights = {f"model.{key}": value for key, value in weights.items()}
        save_file(weights, folder / weights_file(name), metadata={"format": "pt"})


def _stored(key: str, value: Tensor) -> Tensor:
    exact = key.startswith("latents_")
    return value.to(torch.float32 if exact else torch.float16).contiguous()
