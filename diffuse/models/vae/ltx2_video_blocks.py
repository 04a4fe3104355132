"""The blocks of the LTX-2 video autoencoder: causal 3-D convolutions, residual blocks, changes of resolution.

Films lie channels last in memory, so that a norm over the channels reads what lies together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.embeddings import TimestepEmbedding, sinusoidal_embedding
from diffuse.layers.packed import Conv3d

Strides = tuple[int, int, int]  # of time, rows and columns
STRIDES: dict[str, Strides] = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
_FREQUENCIES = 256  # of a timestep's embedding


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Divides every pixel of `[B, C, *sides]` by the root mean square of its channels (Karras et al., 2018)."""
    if x.dtype != torch.float32:  # where the norm would be rounded before it is used
        return F.rms_norm(x.movedim(1, -1), x.shape[1:2], None, eps).movedim(-1, 1)
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square()  # half the time of rms_norm
    return x / (square.div_(x.shape[1]) + eps).sqrt()


class CausalConv3d(nn.Module):
    """A convolution over time, rows and columns that keeps the number of each, divided by `stride`.

    In time the first frame is repeated in front, as often as the kernel looks back. A convolution that is not causal
    looks as far ahead as back, and repeats the first frame and the last one. In space a frame is continued by zeros
    or by its reflection.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, causal: bool, reflect: bool, stride: Strides = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.front, self.back = (2, 0) if causal else (1, 1)
        self.reflect = reflect
        self.conv = Conv3d(channels_in, channels_out, 3, stride=stride, padding=0 if reflect else (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, F, H, W]` to `[B, C', F, H, W]`, of which the sides are divided by the strides."""
        result: Tensor = self.conv(self._padded(x))
        return result

    def _padded(self, x: Tensor) -> Tensor:
        """Continues `[B, C, F, H, W]` in time, and in space where the convolution itself does not."""
        edge = 1 if self.reflect else 0
        batch, channels, frames, height, width = x.shape
        padded = torch.empty(
            (batch, channels, frames + 2, height + 2 * edge, width + 2 * edge),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last_3d,
        )
        film = padded[:, :, self.front : self.front + frames]
        if self.reflect:
            film[..., 1:-1, 1:-1] = x
            film[..., 0, 1:-1], film[..., -1, 1:-1] = x[..., 1, :], x[..., -2, :]
            film[..., 0], film[..., -1] = film[..., 2], film[..., -3]
        else:
            film.copy_(x)
        padded[:, :, : self.front] = film[:, :, :1]
        if self.back:
            padded[:, :, -self.back :] = film[:, :, -1:]
        return padded


class ResnetBlock3D(nn.Module):
    """Norm, SiLU, convolution, twice; where asked for modulated by a timestep, and with noise after convolutions."""

    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        causal: bool,
        reflect: bool,
        eps: float = 1e-6,
        timestep_conditioning: bool = False,
        inject_noise: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels_in, channels_out, causal=causal, reflect=reflect)
        self.conv2 = CausalConv3d(channels_out, channels_out, causal=causal, reflect=reflect)
        self.norm3 = self.conv_shortcut = None
        if channels_in != channels_out:
            self.norm3 = nn.LayerNorm(channels_in, eps=eps)
            self.conv_shortcut = Conv3d(channels_in, channels_out, 1)
        self.per_channel_scale1 = self.per_channel_scale2 = self.scale_shift_table = None
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(channels_in, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(channels_in, 1, 1))
        if timestep_conditioning:
            self.scale_shift_table = nn.Parameter(torch.randn(4, channels_in) / channels_in**0.5)

    def forward(
        self, x: Tensor, temb: Tensor | None = None, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Maps `[B, C, F, H, W]` to `[B, C', F, H, W]`.

        Args:
            x: the film.
            temb: the embedding of its timestep `[B, 4C]`, where the block is modulated.
            generators: one for each film, where the block injects noise; it draws twice `[H, W]`.
        """
        modulations: list[Tensor | None] = [None, None, None, None]
        if self.scale_shift_table is not None and temb is not None:
            modulations = list((temb.unflatten(1, (4, -1)) + self.scale_shift_table).unbind(dim=1))
        h = self.conv1(_activated(x, *modulations[:2]))
        h = _with_noise(h, self.per_channel_scale1, generators)
        h = self.conv2(_activated(h, *modulations[2:]))
        h = _with_noise(h, self.per_channel_scale2, generators)
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        h += x
        return h


def _activated(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """Normalises `[B, C, F, H, W]`, moves it by `shift` and `scale` `[B, C]`, and passes it through SiLU."""
    return F.silu(modulated(pixel_norm(x), shift, scale), inplace=True)


def modulated(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """Scales `[B, C, F, H, W]` by one more than `scale` and moves it by `shift`, `[B, C]`, where they are given."""
    if shift is None or scale is None:
        return x
    shift, scale = (t[:, :, None, None, None] for t in (shift, scale))
    return torch.addcmul(shift, x, scale + 1.0)


def _with_noise(x: Tensor, scale: Tensor | None, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Adds to each film of `[B, C, F, H, W]` one noise of `[H, W]`, times `scale` `[C, 1, 1]`, to all its frames."""
    if scale is None or generators is None:
        return x
    noise = torch.stack([torch.randn(x.shape[-2:], generator=generator) for generator in generators])
    return x + (noise.to(x)[:, None] * scale)[:, :, None]


class Downsampler(nn.Module):
    """Moves `stride` pixels into the channels of one, after a convolution; means of such channels are added.

    Source: Chen et al., "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models", 2025.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: Strides, causal: bool, reflect: bool) -> None:
        super().__init__()
        self.stride = stride
        factor = math.prod(stride)
        self.group = channels_in * factor // channels_out  # channels of which the mean is taken
        self.conv = CausalConv3d(channels_in, channels_out // factor, causal=causal, reflect=reflect)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, F, H, W]` to `[B, C', (F + 1) / 2, H / 2, W / 2]`, on the sides that have a stride of two."""
        if self.stride[0] > 1:
            x = torch.cat((x[:, :, :1], x), dim=2)
        means = space_to_depth(x, self.stride).unflatten(1, (-1, self.group)).mean(dim=2)
        result = space_to_depth(self.conv(x), self.stride)
        result += means
        return result


class Upsampler(nn.Module):
    """Moves channels of a pixel into `stride` pixels, after a convolution; the input, moved alike, is added to it.

    The latter only where it is `residual`. It leaves `1 / factor` of the channels. Source: as `Downsampler`.
    """

    def __init__(
        self, channels: int, *, stride: Strides, factor: int, residual: bool, causal: bool, reflect: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.residual = residual
        self.conv = CausalConv3d(channels, channels * math.prod(stride) // factor, causal=causal, reflect=reflect)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, F, H, W]` to `[B, C / factor, 2F - 1, 2H, 2W]`, on the sides that have a stride of two."""
        result = self._moved(self.conv(x))
        if self.residual:
            moved = self._moved(x)  # has the fewer channels: it is added to each run of as many
            result.unflatten(1, (-1, moved.shape[1])).add_(moved[:, None])
        return result

    def _moved(self, x: Tensor) -> Tensor:
        """Returns `x` with its channels moved to space and time; what would come before the first frame is cut off."""
        return _depth_to_space(x, self.stride)[:, :, self.stride[0] - 1 :]


def space_to_depth(x: Tensor, stride: Strides) -> Tensor:
    """Maps `[B, C, F, H, W]` to `[B, C * t * h * w, F / t, H / h, W / w]` for a stride of `(t, h, w)`."""
    t, h, w = stride
    x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B, F / t, H / h, W / w, C * t * h * w]
    return x.permute(0, 4, 1, 2, 3)


def _depth_to_space(x: Tensor, stride: Strides) -> Tensor:
    """Maps `[B, C * t * h * w, F, H, W]` to `[B, C, F * t, H * h, W * w]` for a stride of `(t, h, w)`."""
    x = x.unflatten(1, (-1, *stride))
    x = x.permute(0, 5, 2, 6, 3, 7, 4, 1)  # [B, F, t, H, h, W, w, C]
    x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return x.permute(0, 4, 1, 2, 3)


class FilmTimestepEmbedding(nn.Module):
    """The embedding of the timestep at which a decoder is told that its latents are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(_FREQUENCIES, width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """Maps `[B]` to `[B, D]` of `dtype`."""
        result: Tensor = self.timestep_embedder(sinusoidal_embedding(timestep, _FREQUENCIES).to(dtype))
        return result
