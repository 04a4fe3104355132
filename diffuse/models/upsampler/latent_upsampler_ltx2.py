"""The upsampler of LTX-2's video latents (HaCohen et al., "LTX-2: Efficient Joint Audio-Visual Foundation Model",
2026): more rows and columns, more frames, or both.

It works on latents that are not normalised: by the statistics of the VAE they are scaled back before, and again after.
Shapes: `B` batch, `C` channels, `F` frames, `H` `W` rows and columns, all of latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError

_FILE = "latent_upsampler/config.json"
_GROUPS = 32
_BLUR = 5  # rows and columns of the kernel
_RATIOS = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}  # up by the first, then down by the second


@dataclass(frozen=True)
class LTX2LatentUpsamplerConfig:
    """The architecture, under the names of the published `latent_upsampler/config.json`."""

    in_channels: int = 128
    mid_channels: int = 1024
    num_blocks_per_stage: int = 4
    dims: int = 3
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    rational_spatial_scale: float = 2.0
    use_rational_resampler: bool = True

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"_class_name": ("LTX2LatentUpsamplerModel",)}

    def __post_init__(self) -> None:
        damaged = "the file is damaged: copy or download it again"
        if self.dims not in (2, 3):
            raise CheckpointError(f"{_FILE}: dims={self.dims} is not implemented, only 2 or 3; use another checkpoint")
        if self.in_channels < 1 or self.mid_channels < 1 or self.mid_channels % _GROUPS:
            raise CheckpointError(
                f"{_FILE}: in_channels={self.in_channels} and mid_channels={self.mid_channels} make no upsampler, "
                f"whose channels are normalised in {_GROUPS} groups; {damaged}"
            )
        if self.num_blocks_per_stage < 0:
            raise CheckpointError(f"{_FILE}: num_blocks_per_stage={self.num_blocks_per_stage}; {damaged}")
        if not (self.spatial_upsample or self.temporal_upsample):
            raise CheckpointError(
                f"{_FILE}: spatial_upsample=False and temporal_upsample=False leave nothing to do; {damaged}"
            )
        if self.temporal_upsample and self.dims == 2:
            raise CheckpointError(
                f"{_FILE}: temporal_upsample=True with dims=2, whose frames do not know one another; {damaged}"
            )
        if self.is_rational and self.rational_spatial_scale not in _RATIOS:
            raise CheckpointError(
                f"{_FILE}: rational_spatial_scale={self.rational_spatial_scale} is not implemented, only "
                f"{', '.join(map(str, _RATIOS))}; use another checkpoint"
            )

    @property
    def is_rational(self) -> bool:
        """Tells whether `rational_spatial_scale` counts; otherwise what is scaled is doubled."""
        return self.use_rational_resampler and self.spatial_upsample and not self.temporal_upsample

    @property
    def spatial_scale(self) -> float:
        """The rows and columns that are made of one."""
        if self.is_rational:
            return self.rational_spatial_scale
        return 2.0 if self.spatial_upsample else 1.0


class _ResBlock(nn.Module):
    def __init__(self, convolution: type[nn.Conv2d | nn.Conv3d], channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv2 = convolution(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, F, H, W]`, or `[B, C, H, W]`, to the same shape."""
        out = self.conv2(F.silu(self.norm1(self.conv1(x))))
        return F.silu(self.norm2(out).add_(x))


class _Shuffle(nn.Module):
    """Channels become neighbours along some axes, of which there are `factors` (Shi et al., "Real-Time Single Image and
    Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", 2016).
    """

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C * product, a, b, ...]` to `[B, C, a * factor, b * factor, ...]`, the first axes first."""
        count = len(self.factors)
        x = x.unflatten(1, (-1, *self.factors))
        order = [0, 1]
        for axis in range(count):
            order += [2 + count + axis, 2 + axis]
        x = x.permute(*order, *range(2 + 2 * count, x.ndim))
        for axis in range(count):
            x = x.flatten(2 + axis, 3 + axis)
        return x


class _Blur(nn.Module):
    """Smooths maps by a stored kernel, and keeps some of their pixels."""

    kernel: Tensor

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.empty(1, 1, _BLUR, _BLUR))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, H / stride, W / stride]`, rounded up."""
        if self.stride == 1:
            return x
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return F.conv2d(x, kernel, stride=self.stride, padding=_BLUR // 2, groups=channels)


class _RationalResampler(nn.Module):
    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.up, down = _RATIOS[scale]
        self.conv = nn.Conv2d(channels, channels * self.up**2, 3, padding=1)
        self.blur_down = _Blur(down)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, H * scale, W * scale]`, rounded up."""
        result: Tensor = self.blur_down(F.pixel_shuffle(self.conv(x), self.up))
        return result


class LTX2LatentUpsamplerModel(nn.Module):
    """Makes latents larger. Of `F` frames a temporal one makes `2 F - 1`: the first stands for one of the pixels."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_ResBlock,)

    def __init__(self, config: LTX2LatentUpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.mid_channels
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if config.dims == 2 else nn.Conv3d
        self.initial_conv = convolution(config.in_channels, channels, 3, padding=1)
        self.initial_norm = nn.GroupNorm(_GROUPS, channels)
        blocks = range(config.num_blocks_per_stage)
        self.res_blocks = nn.ModuleList(_ResBlock(convolution, channels) for _ in blocks)
        self.upsampler: nn.Module
        if config.is_rational:
            self.upsampler = _RationalResampler(channels, config.rational_spatial_scale)
        else:
            factors = (2,) * (config.temporal_upsample + 2 * config.spatial_upsample)
            layer = nn.Conv3d if config.temporal_upsample else nn.Conv2d
            self.upsampler = nn.Sequential(
                layer(channels, channels * 2 ** len(factors), 3, padding=1), _Shuffle(factors)
            )
        self.post_upsample_res_blocks = nn.ModuleList(_ResBlock(convolution, channels) for _ in blocks)
        self.final_conv = convolution(channels, config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[B, C, F, H, W]` to `[B, C, F', H', W']`."""
        batch = len(latents)
        flat = self.config.dims == 2
        x = _to_frames(latents) if flat else latents
        x = F.silu(self.initial_norm(self.initial_conv(x)))
        for block in self.res_blocks:
            x = block(x)
        if self.config.temporal_upsample:
            x = self.upsampler(x)[:, :, 1:]
        elif flat:
            x = self.upsampler(x)
        else:
            x = _to_film(self.upsampler(_to_frames(x)), batch)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        x = self.final_conv(x)
        return _to_film(x, batch) if flat else x


def _to_frames(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)  # [B * F, C, H, W]


def _to_film(x: Tensor, batch: int) -> Tensor:
    return x.unflatten(0, (batch, -1)).transpose(1, 2)  # [B, C, F, H, W]


def rename(key: str) -> str | None:
    """Returns the module's key for a published key: the same."""
    return key
