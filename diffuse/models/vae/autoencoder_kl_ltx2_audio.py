"""The sound autoencoder of LTX-2 (HaCohen et al., 2026), with the state-dict keys of published checkpoints.

It encodes mel spectrograms, of which time is the height: a picture autoencoder that is causal on that axis. `A` latents
in time are `4A - 3` mel frames. Latents here are the autoencoder's own; a denoiser's are packed and `normalized`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError
from diffuse.layers.packed import Conv2d
from diffuse.models.vae.autoencoder_kl import DiagonalGaussian
from diffuse.models.vae.ltx2_video_blocks import pixel_norm

_EPS = 1e-6
_LEVELS = 3
_FACTOR = 1 << (_LEVELS - 1)  # mel frames and mel bins a latent
_FILE = "audio_vae/config.json"


@dataclass(frozen=True)
class AutoencoderKLLTX2AudioConfig:
    """The architecture, under the names of the published `audio_vae/config.json`."""

    base_channels: int = 128
    output_channels: int = 2
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] | None = None
    in_channels: int = 2
    resolution: int = 256  # of the spectrogram, where `attn_resolutions` speak of it
    latent_channels: int = 8
    mid_block_add_attention: bool = False
    sample_rate: int = 16000
    mel_hop_length: int = 160
    mel_bins: int = 64

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "_class_name": ("AutoencoderKLLTX2Audio",),
        "norm_type": ("pixel",),
        "causality_axis": ("height",),
        "is_causal": (True,),
        "double_z": (True,),
    }
    IGNORED: ClassVar[frozenset[str]] = frozenset({"dropout"})  # of training

    def __post_init__(self) -> None:
        if len(self.ch_mult) != _LEVELS:
            raise CheckpointError(
                f"{_FILE}: ch_mult has {len(self.ch_mult)} levels, and only {_LEVELS} are implemented; "
                "use another checkpoint"
            )
        numbers = (self.base_channels, *self.ch_mult, self.latent_channels, self.mel_bins, self.mel_hop_length)
        if min(numbers) < 1 or self.mel_bins % _FACTOR:
            raise CheckpointError(
                f"{_FILE}: base_channels={self.base_channels}, ch_mult={list(self.ch_mult)}, latent_channels="
                f"{self.latent_channels}, mel_bins={self.mel_bins} and mel_hop_length={self.mel_hop_length} make no "
                "autoencoder; the file is damaged: copy or download it again"
            )
        if self.latent_channels * self.latent_bins != self.base_channels:
            raise CheckpointError(
                f"{_FILE}: {self.latent_channels} channels of {self.latent_bins} bins have as many statistics, where "
                f"base_channels={self.base_channels}; the file is damaged: copy or download it again"
            )

    @property
    def factor(self) -> int:
        """The number of mel frames that a latent covers in time, after the first, and of its mel bins."""
        return _FACTOR

    @property
    def latent_bins(self) -> int:
        """The number of latents beside each other at one time."""
        return self.mel_bins // _FACTOR

    @property
    def latents_per_second(self) -> float:
        """The number of latents, in time, of a second of sound."""
        return self.sample_rate / self.mel_hop_length / _FACTOR


class _CausalConv2d(nn.Module):
    """A convolution of the spectrogram that sees no later time: zeros are put in front of it, and on both its sides."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.reach = kernel_size - 1
        self.conv = Conv2d(channels_in, channels_out, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C', M, bins]`."""
        if self.reach:
            x = F.pad(x, (self.reach // 2, self.reach // 2, self.reach, 0))
        result: Tensor = self.conv(x)
        return result


class _ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice."""

    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _CausalConv2d(channels_in, channels_out)
        self.conv2 = _CausalConv2d(channels_out, channels_out)
        self.nin_shortcut = _CausalConv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C', M, bins]`."""
        h = self.conv1(F.silu(pixel_norm(x, _EPS), inplace=True))
        h = self.conv2(F.silu(pixel_norm(h, _EPS), inplace=True))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        h += x
        return h


class _AttentionBlock(nn.Module):
    """Self-attention of one head over the whole spectrogram."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj_out = (Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C, M, bins]`."""
        h = pixel_norm(x, _EPS)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, M * bins, C]
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        result: Tensor = self.proj_out(out.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return x + result


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C, ceil(M / 2), bins / 2]`."""
        result: Tensor = self.conv(F.pad(x, (0, 1, 2, 0)))
        return result


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _CausalConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C, 2M - 1, 2 * bins]`."""
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))[:, :, 1:]
        return result


class _Stage(nn.Module):
    """Residual blocks, each with attention after it where the resolution asks for that, and a change of resolution."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _ResnetBlock(channels_in if i == 0 else channels_out, channels_out) for i in range(blocks)
        )
        self.attn = nn.ModuleList(_AttentionBlock(channels_out) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C', M', bins']`."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for sampler in (self.downsample, self.upsample):
            if sampler is not None:
                x = sampler(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = _ResnetBlock(channels, channels)
        self.attn_1 = _AttentionBlock(channels) if attention else None
        self.block_2 = _ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, M, bins]` to `[B, C, M, bins]`."""
        x = self.block_1(x)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        result: Tensor = self.block_2(x)
        return result


class AudioEncoder(nn.Module):
    """The encoder, from mel spectrograms to the moments of latents."""

    def __init__(self, config: AutoencoderKLLTX2AudioConfig) -> None:
        super().__init__()
        width = config.base_channels
        self.conv_in = _CausalConv2d(config.in_channels, width)
        self.down = nn.ModuleList()
        for level, factor in enumerate(config.ch_mult):
            attention = config.resolution >> level in (config.attn_resolutions or ())
            stage = _Stage(width, config.base_channels * factor, config.num_res_blocks, attention)
            width = config.base_channels * factor
            if level < _LEVELS - 1:
                stage.downsample = _Downsample(width)
            self.down.append(stage)
        self.mid = _Middle(width, config.mid_block_add_attention)
        self.conv_out = _CausalConv2d(width, 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes `[B, 2, M, bins]` as moments `[B, 2C, A, bins / 4]`."""
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for stage in self.down:
            x = stage(x)
        result: Tensor = self.conv_out(F.silu(pixel_norm(self.mid(x), _EPS), inplace=True))
        return result


class AudioDecoder(nn.Module):
    """The decoder, from latents to mel spectrograms."""

    def __init__(self, config: AutoencoderKLLTX2AudioConfig) -> None:
        super().__init__()
        width = config.base_channels * config.ch_mult[-1]
        self.conv_in = _CausalConv2d(config.latent_channels, width)
        self.mid = _Middle(width, config.mid_block_add_attention)
        stages = []
        for level in reversed(range(_LEVELS)):
            attention = config.resolution >> level in (config.attn_resolutions or ())
            stage = _Stage(width, config.base_channels * config.ch_mult[level], config.num_res_blocks + 1, attention)
            width = config.base_channels * config.ch_mult[level]
            if level > 0:
                stage.upsample = _Upsample(width)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # which run from the last
        self.conv_out = _CausalConv2d(width, config.output_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Decodes `[B, C, A, bins / 4]` to `[B, 2, 4A - 3, bins]`."""
        x = self.mid(self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        for level in reversed(range(_LEVELS)):
            x = self.up[level](x)
        result: Tensor = self.conv_out(F.silu(pixel_norm(x, _EPS), inplace=True))
        return result


class AutoencoderKLLTX2Audio(nn.Module):
    """The autoencoder, between logarithms of mel spectrograms and latents."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_ResnetBlock,)
    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderKLLTX2AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config)
        self.decoder = AudioDecoder(config)
        self.register_buffer("latents_mean", torch.zeros(config.base_channels))
        self.register_buffer("latents_std", torch.ones(config.base_channels))

    def encode(self, mel: Tensor) -> DiagonalGaussian:
        """Encodes mel spectrograms `[B, 2, M, bins]` as the distribution of `[B, C, (M + 3) // 4, bins / 4]`."""
        if mel.shape[-1] != self.config.mel_bins:
            raise ValueError(f"a spectrogram of {mel.shape[-1]} bins came where {self.config.mel_bins} are encoded")
        return DiagonalGaussian(self.encoder(mel))

    def decode(self, z: Tensor) -> Tensor:
        """Decodes latents `[B, C, A, bins / 4]` to mel spectrograms `[B, 2, 4A - 3, bins]`."""
        if z.shape[-1] != self.config.latent_bins:
            raise ValueError(f"latents of {z.shape[-1]} bins came where {self.config.latent_bins} are decoded")
        result: Tensor = self.decoder(z)
        return result.contiguous()

    def packed(self, z: Tensor) -> Tensor:
        """Returns latents `[B, C, A, bins]` as tokens `[B, A, C * bins]`."""
        return z.transpose(1, 2).flatten(2)

    def unpacked(self, tokens: Tensor) -> Tensor:
        """Returns tokens `[B, A, C * bins]` as latents `[B, C, A, bins]`."""
        return tokens.unflatten(2, (self.config.latent_channels, -1)).transpose(1, 2)

    def normalized(self, tokens: Tensor) -> Tensor:
        """Returns packed latents `[B, A, C * bins]` with the mean and deviation that a denoiser expects."""
        return (tokens - self.latents_mean.to(tokens)) / self.latents_std.to(tokens)

    def denormalized(self, tokens: Tensor) -> Tensor:
        """Returns a denoiser's packed latents `[B, A, C * bins]` as the autoencoder's own."""
        return tokens * self.latents_std.to(tokens) + self.latents_mean.to(tokens)
