"""Attention and the transformer blocks built from it.

Shapes: `B` batch, `G` contexts for it, `C` channels, `H` `W` rows and columns, `T` tokens, `D` width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.packed import Conv2d, Linear


class Attention(nn.Module):
    """Multi-head attention of `query_dim`-wide tokens over a context (themselves where none is given).

    Args:
        query_dim: width of the queries and of the result.
        heads, head_dim: the inner width is their product.
        context_dim: width of the context, `query_dim` for self-attention.
        qkv_bias: whether the three input projections have a bias.
        upcast: compute in float32 when the input is float16. SD 2.1 needs it: its products leave float16's range.

    Source: Vaswani et al., "Attention Is All You Need", 2017.
    """

    def __init__(
        self,
        query_dim: int,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        qkv_bias: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.upcast = upcast
        self.to_q = Linear(query_dim, inner, bias=qkv_bias)
        self.to_k = Linear(context_dim, inner, bias=qkv_bias)
        self.to_v = Linear(context_dim, inner, bias=qkv_bias)
        self.to_out = nn.ModuleList([Linear(inner, query_dim)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attends from `x` `[B, T, D]` to `context` `[B, T', D']`; returns `[B, T, D]`.

        Fewer contexts, `[G, T', D']`, are shared: each belongs to `B / G` neighbours, whose tokens attend to it
        together, so that keys and values are computed once a context.
        """
        context = x if context is None else context
        shape = x.shape
        if len(context) != len(x):
            x = x.reshape(len(context), -1, shape[-1])
        q, k, v = (self._split(t) for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        if self.upcast and x.dtype == torch.float16:
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(x.dtype)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        merged: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))  # [B, T, heads * head_dim]
        return merged.view(shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]


class GEGLU(nn.Module):
    """A linear layer, one half of which gates the other by GELU (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., dim_in]` to `[..., dim_out]`."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. The key `net.2` leaves the place of a dropout that inference lacks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, dim * 4), nn.Identity(), Linear(dim * 4, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., D]` to `[..., D]`."""
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each normalised first and added to its input."""

    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(self, dim: int, heads: int, context_dim: int, upcast: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, dim // heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, dim // heads, context_dim, upcast=upcast)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Maps `x` `[B, T, D]` with `context` `[G, T', D']` to `[B, T, D]`."""
        x = self.attn1(self.norm1(x)).add_(x)
        x = self.attn2(self.norm2(x), context).add_(x)
        result: Tensor = self.ff(self.norm3(x)).add_(x)
        return result


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to the map.

    `linear_projection` says whether the entry and exit are linear layers on tokens or 1 x 1 convolutions on the map.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        context_dim: int,
        norm_groups: int,
        linear_projection: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        inner = heads * (channels // heads)
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in: nn.Module = Linear(channels, inner) if linear_projection else Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, context_dim, upcast) for _ in range(depth)
        )
        self.proj_out: nn.Module = Linear(inner, channels) if linear_projection else Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Maps `x` `[B, C, H, W]` with `context` `[G, T, D]` to `[B, C, H, W]`."""
        h = self.norm(x)
        if not self.linear_projection:
            h = self.proj_in(h)
        h = h.permute(0, 2, 3, 1)  # [B, H, W, C]
        height, width = h.shape[1:3]
        h = h.flatten(1, 2)  # [B, H * W, C]
        if self.linear_projection:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear_projection:
            h = self.proj_out(h)
        h = h.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # [B, C, H, W], channels last in memory
        if not self.linear_projection:
            h = self.proj_out(h)
        h += x
        return h
