"""Tiny random autoencoders and vocoders of LTX-2 as diffusers makes them, and ours with their settings and weights."""

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Audio as PeerAudio
from diffusers import AutoencoderKLLTX2Video as PeerVideo
from diffusers.pipelines.ltx2 import LTX2Vocoder as PeerVocoder
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE as PeerVocoderWithBWE
from torch import Tensor, nn

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.vae import autoencoder_kl_ltx2_audio, autoencoder_kl_ltx2_video, ltx2_video_config
from diffuse.models.vocoder import ltx2_vocoder

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
LATENTS = 8  # channels of a video's latents

COMMON_VIDEO: dict[str, Any] = {
    "latent_channels": LATENTS,
    "layers_per_block": (1, 1, 1, 1, 1),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "patch_size": 4,
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
VIDEO: dict[str, dict[str, Any]] = {
    "2.0": COMMON_VIDEO
    | {
        "block_out_channels": (16, 16, 32, 64),
        "decoder_block_out_channels": (16, 32, 64),
        "decoder_layers_per_block": (1, 1, 2, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False, False, False, False),
        "upsample_type": ("spatiotemporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "decoder_spatial_padding_mode": "reflect",
    },
    "2.3": COMMON_VIDEO
    | {
        "block_out_channels": (16, 16, 32, 32),
        "decoder_block_out_channels": (16, 32, 32, 64),
        "decoder_layers_per_block": (1, 2, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True, True),
        "decoder_inject_noise": (False, False, False, False, False),
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False, False, False, False),
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
}

AUDIO: dict[str, Any] = {
    "base_channels": 8,  # as many as there are statistics
    "ch_mult": (1, 2, 4),
    "num_res_blocks": 1,
    "resolution": 32,
    "latent_channels": 2,
    "norm_type": "pixel",
    "causality_axis": "height",
    "mel_bins": 16,
}

VOCODER: dict[str, dict[str, Any]] = {
    "2.0": {
        "in_channels": 32,
        "hidden_channels": 32,
        "upsample_kernel_sizes": [16, 15, 8],
        "upsample_factors": [6, 5, 2],
        "resnet_kernel_sizes": [3, 7],
        "resnet_dilations": [[1, 3, 5], [1, 2]],
    },
    "2.3": {
        "in_channels": 32,
        "hidden_channels": 32,
        "upsample_kernel_sizes": [11, 4, 4, 4, 4],
        "upsample_factors": [5, 2, 2, 2, 4],
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3]],
        "bwe_in_channels": 32,
        "bwe_hidden_channels": 32,
        "bwe_upsample_kernel_sizes": [12, 11, 4, 4],
        "bwe_upsample_factors": [6, 5, 2, 4],
        "bwe_resnet_kernel_sizes": [3],
        "bwe_resnet_dilations": [[1, 3, 5]],
        "num_mel_channels": 16,
    },
}


def randomise(module: nn.Module, seed: int = 1, gain: float = 1.0) -> nn.Module:
    """Draws every parameter and stored buffer, so that none keeps a value with which a mistake could agree."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if "std" in name:
                noise = noise.abs() + 0.5
            elif noise.ndim < 2:
                noise = 0.1 * noise + ("norm" in name and name.endswith("weight"))
            else:
                noise = noise * gain / noise[0].numel() ** 0.5
            tensor.copy_(noise)
    return module.eval()


def video_peer(version: str, **changes: Any) -> Any:
    return randomise(PeerVideo(**(VIDEO[version] | changes)))


def our_video(peer: Any) -> autoencoder_kl_ltx2_video.AutoencoderKLLTX2Video:
    """Our video autoencoder with the peer's settings and weights."""
    return _ours(
        autoencoder_kl_ltx2_video.AutoencoderKLLTX2Video,
        ltx2_video_config.AutoencoderKLLTX2VideoConfig,
        peer,
        "vae/config.json",
    )


def audio_peer(**changes: Any) -> Any:
    return randomise(PeerAudio(**(AUDIO | changes)))


def our_audio(peer: Any) -> autoencoder_kl_ltx2_audio.AutoencoderKLLTX2Audio:
    """Our sound autoencoder with the peer's settings and weights."""
    return _ours(
        autoencoder_kl_ltx2_audio.AutoencoderKLLTX2Audio,
        autoencoder_kl_ltx2_audio.AutoencoderKLLTX2AudioConfig,
        peer,
        "audio_vae/config.json",
    )


def vocoder_peer(version: str, **changes: Any) -> Any:
    settings = VOCODER[version] | changes
    # Stored filters, bases of the Fourier transform and of mel are drawn like weights: they have to be read.
    peer: Any = randomise(PeerVocoder(**settings) if version == "2.0" else PeerVocoderWithBWE(**settings), gain=0.8)
    if version == "2.3":
        with torch.no_grad():
            peer.mel_stft.mel_basis.abs_()  # as it is published; the logarithm of a difference would magnify rounding
    return peer


def our_vocoder(peer: Any) -> Any:
    """Our vocoder, of the kind that the peer's configuration names, with its settings and weights."""
    model, config = {
        "LTX2Vocoder": (ltx2_vocoder.LTX2Vocoder, ltx2_vocoder.LTX2VocoderConfig),
        "LTX2VocoderWithBWE": (ltx2_vocoder.LTX2VocoderWithBWE, ltx2_vocoder.LTX2VocoderWithBWEConfig),
    }[type(peer).__name__]
    return _ours(model, config, peer, "vocoder/config.json")


def _ours(model: Any, config: Any, peer: Any, file: str) -> Any:
    settings = read_architecture(config, json.loads(peer.to_json_string()), file)
    with torch.device("meta"):
        module = model(settings)
    state = {key: tensor.clone() for key, tensor in peer.state_dict().items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def film(batch: int, frames: int, height: int, width: int) -> Tensor:
    """Pixels `[B, 3, F, H, W]` in -1..1."""
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1
