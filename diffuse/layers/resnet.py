"""Residual convolution blocks and changes of resolution, as the U-Net and the autoencoder share them."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.packed import Conv2d, Linear


class ResnetBlock2D(nn.Module):
    """Norm, SiLU, convolution, twice; a timestep embedding is added between them where `temb_channels` is given."""

    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, eps: float, temb_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        if temb_channels is not None:
            self.time_emb_proj = Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, activated_temb: Tensor | None = None) -> Tensor:
        """Maps `x` `[B, C, H, W]` with `activated_temb` `[B, D]` (already through SiLU) to `[B, C', H, W]`."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if activated_temb is not None:
            h += self.time_emb_proj(activated_temb)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        h += x
        return h


class Downsample2D(nn.Module):
    """Halves rows and columns by a strided convolution; `padding=0` pads only the far sides, as autoencoders do."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.far_sides_only = padding == 0
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, ceil(H / 2), ceil(W / 2)]`; floor where only the far sides are padded."""
        if self.far_sides_only:
            x = F.pad(x, (0, 1, 0, 1))
        result: Tensor = self.conv(x)
        return result


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement, to twice the size or to `size`, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, 2H, 2W]`, or `[B, C, *size]`."""
        size = size or (x.shape[-2] * 2, x.shape[-1] * 2)
        result: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return result
