"""The settings of LTX-2's components, from the configuration in the header of the authors' files and from shapes.

Source: the "LTX-2" repository of Lightricks, for the names; what they mean is in diffusers' own configurations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.models.single_file.origin import Shapes

Settings = Mapping[str, Any]

# Their name -> ours, of what is the same number in both.
_TRANSFORMER = {
    name: name
    for name in (
        *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "cross_attention_dim"),
        *("audio_in_channels", "audio_out_channels", "audio_num_attention_heads", "audio_attention_head_dim"),
        *("audio_cross_attention_dim", "num_layers", "caption_channels", "norm_eps", "rope_type"),
        *("timestep_scale_multiplier", "activation_fn"),
    )
} | {"positional_embedding_theta": "rope_theta"}
_FIXED = {"use_middle_indices_grid": True, "adaptive_norm": "single_scale_shift"}  # nothing else is implemented
_AUDIO_VAE = {
    "ch": "base_channels",
    "ch_mult": "ch_mult",
    "z_channels": "latent_channels",
    "mel_bins": "mel_bins",
    "resolution": "resolution",
    "num_res_blocks": "num_res_blocks",
    "in_channels": "in_channels",
    "out_ch": "output_channels",
    "norm_type": "norm_type",
    "causality_axis": "causality_axis",
}
_SIZES = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
_BASE = 128  # channels of the autoencoder's outermost blocks, where nothing says so
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
    "time_shift_type": "exponential",
}
"""As it is published for the models that are not distilled; the pipeline of a distilled one shifts nothing."""


def is_later(transformer: Settings) -> bool:
    """Tells whether a header's transformer is that of version 2.3, whose texts are projected by the connectors."""
    return bool(transformer.get("caption_proj_before_connector", False))


def transformer_settings(header: Settings, name: str) -> dict[str, Any]:
    """Returns the settings of the transformer.

    Raises:
        CheckpointError: the header asks for what is not implemented.
    """
    own = _section(header, "transformer", name)
    for key, value in _FIXED.items():
        if own.get(key, value) != value:
            raise CheckpointError(f"{name}: its transformer has {key}={own[key]}, which is not implemented")
    settings: dict[str, Any] = {"_class_name": "LTX2VideoTransformer3DModel", "rope_type": "interleaved"}
    settings |= {ours: own[theirs] for theirs, ours in _TRANSFORMER.items() if theirs in own}
    if "positional_embedding_max_pos" in own:
        places = zip(
            ("pos_embed_max_pos", "base_height", "base_width"), own["positional_embedding_max_pos"], strict=True
        )
        settings |= dict(places)
    if "audio_positional_embedding_max_pos" in own:
        (settings["audio_pos_embed_max_pos"],) = own["audio_positional_embedding_max_pos"]
    gated, modulated = bool(own.get("apply_gated_attention")), bool(own.get("cross_attention_adaln"))
    sound = audio_vae_settings(header, name)
    return settings | {
        "rope_double_precision": own.get("frequencies_precision") == "float64",
        "cross_attn_timestep_scale_multiplier": own.get("av_ca_timestep_scale_multiplier", 1),
        "gated_attn": gated,
        "audio_gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_cross_attn_mod": modulated,
        "use_prompt_embeddings": not is_later(own),
        "perturbed_attn": is_later(own),
        "audio_sampling_rate": sound["sample_rate"],
        "audio_hop_length": sound["mel_hop_length"],
    }


def connectors_settings(header: Settings, shapes: Shapes, name: str) -> dict[str, Any]:
    """Returns the settings of the connectors, whose tensors have these `shapes` by their published keys.

    Raises:
        CheckpointError: a tensor is missing that tells them.
    """
    own = _section(header, "transformer", name)
    caption = own.get("caption_channels", 3840)
    apart = is_later(own)
    projections = [f"{stream}_text_proj_in" for stream in ("video", "audio")] if apart else ["text_proj_in"]
    for each in projections:
        if f"{each}.weight" not in shapes:
            raise CheckpointError(f"{name}: lacks the projection of the text, {each}; the file is incomplete")
    (width, taken), *others = [shapes[f"{each}.weight"] for each in projections]
    settings: dict[str, Any] = {
        "_class_name": "LTX2TextConnectors",
        "caption_channels": caption,
        "text_proj_in_factor": taken // caption,
        "connector_rope_base_seq_len": own.get("connector_positional_embedding_max_pos", [4096])[0],
        "rope_theta": own.get("positional_embedding_theta", 10000.0),
        "rope_type": own.get("rope_type", "interleaved"),
        "rope_double_precision": own.get("frequencies_precision") == "float64",
        "per_modality_projections": apart,
        "proj_bias": f"{projections[0]}.bias" in shapes,
    }
    if apart:
        settings |= {"video_hidden_dim": width, "audio_hidden_dim": others[0][0]}
    for stream, prefix in (("video", "connector_"), ("audio", "audio_connector_")):
        for ours, otherwise in (
            ("num_attention_heads", 30),
            ("attention_head_dim", 128),
            ("num_layers", 2),
            ("num_learnable_registers", 128),
        ):
            video = own.get(f"connector_{ours}", otherwise)
            settings[f"{stream}_connector_{ours}"] = own.get(f"{prefix}{ours}", video)
        settings[f"{stream}_gated_attn"] = bool(own.get("connector_apply_gated_attention", False))
    return settings


def video_vae_settings(header: Settings, name: str) -> dict[str, Any]:
    """Returns the settings of the video autoencoder.

    Raises:
        CheckpointError: the header has blocks that are not implemented.
    """
    own = _section(header, "vae", name)
    latents = own.get("latent_channels", 128)
    down, down_layers = _blocks(own.get("encoder_blocks"), "_res", name)
    up, up_layers = _blocks(own.get("decoder_blocks"), "", name)
    widths = list(accumulate((options.get("multiplier", 2) for _, options in down), mul, initial=_base(own, "encoder")))
    factors = [options.get("multiplier", 1) for _, options in up]
    inner = list(accumulate(factors, mul, initial=_base(own, "decoder")))
    padding = "zeros" if is_later(header.get("transformer", {})) else "reflect"
    return {
        "_class_name": "AutoencoderKLLTX2Video",
        "in_channels": own.get("in_channels", 3),
        "out_channels": own.get("out_channels", 3),
        "latent_channels": latents,
        "block_out_channels": widths[1:],
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(down),
        "layers_per_block": [options.get("num_layers", 1) for options in down_layers],
        "downsample_type": [kind for kind, _ in down],
        "spatio_temporal_scaling": [True] * len(down),
        "decoder_block_out_channels": inner[1:],
        "decoder_layers_per_block": [options.get("num_layers", 1) for options in up_layers],
        "decoder_inject_noise": [bool(options.get("inject_noise", False)) for options in up_layers],
        "decoder_spatio_temporal_scaling": [True] * len(up),
        "upsample_type": [kind for kind, _ in reversed(up)],
        "upsample_residual": [bool(options.get("residual", False)) for _, options in up],
        "upsample_factor": factors,
        "patch_size": own.get("patch_size", 4),
        "timestep_conditioning": bool(own.get("timestep_conditioning", False)),
        "decoder_causal": bool(own.get("causal_decoder", False)),
        "decoder_spatial_padding_mode": own.get("spatial_padding_mode", padding),
    }


def audio_vae_settings(header: Settings, name: str) -> dict[str, Any]:
    """Returns the settings of the sound's autoencoder."""
    own = _section(header, "audio_vae", name)
    parameters = own.get("model", {}).get("params", {})
    given = parameters.get("ddconfig", {})
    return {
        "_class_name": "AutoencoderKLLTX2Audio",
        "sample_rate": parameters.get("sampling_rate", 16000),
        "mel_hop_length": own.get("preprocessing", {}).get("stft", {}).get("hop_length", 160),
    } | {ours: given[theirs] for theirs, ours in _AUDIO_VAE.items() if theirs in given}


def vocoder_settings(header: Settings, shapes: Shapes, name: str) -> dict[str, Any]:
    """Returns the settings of the vocoder, whose tensors have these `shapes` by their published keys."""
    own = _section(header, "vocoder", name)
    if "bwe" not in own:
        return {"_class_name": "LTX2Vocoder"} | _one_vocoder(own, shapes, "", "", name)
    bwe, first = own["bwe"], own.get("vocoder", {})
    return {
        "_class_name": "LTX2VocoderWithBWE",
        "filter_length": bwe.get("n_fft", 512),
        "window_length": bwe.get("win_size", bwe.get("n_fft", 512)),
        "hop_length": bwe.get("hop_length", 80),
        "num_mel_channels": bwe.get("num_mels", 64),
        "input_sampling_rate": bwe.get("input_sampling_rate", 16000),
        "output_sampling_rate": bwe.get("output_sampling_rate", 48000),
        **_one_vocoder(first, shapes, "vocoder.", "", name),
        **_one_vocoder(bwe, shapes, "bwe_generator.", "bwe_", name),
    }


def _one_vocoder(own: Settings, shapes: Shapes, prefix: str, to: str, name: str) -> dict[str, Any]:
    """Returns the settings of one generator: the factors from the header, the rest from its shapes."""
    factors = own.get("upsample_rates")
    kernels = [shapes.get(f"{prefix}upsamplers.{index}.weight", (0,))[-1] for index in range(len(factors or ()))]
    first, last = shapes.get(f"{prefix}conv_in.weight"), shapes.get(f"{prefix}conv_out.weight")
    if not factors or 0 in kernels or first is None or last is None:
        raise CheckpointError(f"{name}: its vocoder is not all there, or its header has no upsample_rates of it")
    settings = {
        "in_channels": first[1],
        "hidden_channels": first[0],
        "out_channels": last[0],
        "upsample_factors": list(factors),
        "upsample_kernel_sizes": kernels,
        "final_bias": f"{prefix}conv_out.bias" in shapes,
    }
    for theirs, ours in (
        ("resblock_kernel_sizes", "resnet_kernel_sizes"),
        ("resblock_dilation_sizes", "resnet_dilations"),
    ):
        if theirs in own:
            settings[ours] = own[theirs]
    return {to + key: value for key, value in settings.items()}


def _section(header: Settings, part: str, name: str) -> Settings:
    section = header.get(part)
    if not isinstance(section, Mapping):
        raise CheckpointError(
            f"{name}: its header has no settings of the {part}; give the whole file as its authors publish it, or the "
            f"component beside a checkpoint, as model.{part}.source"
        )
    return section


def _base(own: Settings, half: str) -> int:
    return int(own.get(f"{half}_base_channels", _BASE))


def _blocks(value: Any, suffix: str, name: str) -> tuple[list[tuple[str, Settings]], list[Settings]]:
    """Returns what changes the size between the levels, and the levels, in the header's order.

    Raises:
        CheckpointError: a block is of another kind, or they do not take turns.
    """
    blocks = [(str(each[0]), each[1] if len(each) > 1 else {}) for each in value or () if isinstance(each, Sequence)]
    levels, between = blocks[::2], blocks[1::2]
    kinds = [_SIZES.get(kind.removeprefix("compress_").removesuffix(suffix)) for kind, _ in between]
    if len(levels) != len(between) + 1 or None in kinds or any(kind != "res_x" for kind, _ in levels):
        shown = ", ".join(kind for kind, _ in blocks)
        raise CheckpointError(f"{name}: its autoencoder has the blocks {shown or 'of none'}, which is not implemented")
    sizes = [(str(kind), options) for kind, (_, options) in zip(kinds, between, strict=True)]
    return sizes, [options for _, options in levels]
