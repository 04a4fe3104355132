"""Rotary embeddings (Su et al., "RoFormer", 2021) and the attention that uses them, as LTX-2 has them.

Shapes: `B` batch, `T` tokens, `T'` tokens of a context, `D` width, which is heads times head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.packed import Linear


class Rotation(NamedTuple):
    """Cosines and sines of the angles, `[T, heads, head_dim / 2]` or `[B, T, heads, head_dim / 2]`, float32."""

    cosines: Tensor
    sines: Tensor

    def rotate(self, x: Tensor, *, interleaved: bool) -> Tensor:
        """Rotates pairs of `x` `[B, T, heads, head_dim]` in float32: neighbours, or the two halves of each head."""
        axis = -1 if interleaved else -2
        pairs = x.float().unflatten(-1, (-1, 2) if interleaved else (2, -1))
        first, second = pairs.unbind(axis)
        turned = pairs * self.cosines.unsqueeze(axis)
        turned.select(axis, 0).addcmul_(second, self.sines, value=-1)
        turned.select(axis, 1).addcmul_(first, self.sines)
        return turned.flatten(-2).to(x.dtype)


def rotation_at(
    positions: Tensor, *, heads: int, head_dim: int, theta: float, double_precision: bool = True
) -> Rotation:
    """Returns the rotation of tokens at `positions` `[..., T, axes]`, each of which runs from 0 to 1 along its axis.

    Frequencies run over all heads, and the axes alternate. Pairs that are left over come first and are not rotated.
    The frequencies are made on the CPU: not every device has double precision.
    """
    pairs, axes = heads * head_dim // 2, positions.shape[-1]
    dtype = torch.float64 if double_precision else torch.float32
    powers = torch.linspace(0.0, 1.0, pairs // axes, dtype=dtype, device="cpu")
    frequencies = (torch.pow(theta, powers) * torch.pi / 2.0).float().to(positions.device)
    angles = ((positions[..., None] * 2 - 1) * frequencies).transpose(-1, -2).flatten(-2)  # [..., T, pairs]
    angles = F.pad(angles, (pairs - angles.shape[-1], 0)).unflatten(-1, (heads, -1))
    return Rotation(angles.cos(), angles.sin())


class RotaryAttention(nn.Module):
    """Multi-head attention with rotary embeddings, whose queries and keys are normalised over all heads together.

    Args:
        query_dim: width of the queries and of the result.
        heads, head_dim: the inner width is their product.
        context_dim: width of the context, `query_dim` where none is given.
        gated: each head's result is multiplied by a gate from 0 to 2, which is computed from the queries' input.
        interleaved: which pairs are rotated, see `Rotation.rotate`.
        packed: its weights are packed, see `diffuse.layers.packed`; for a model that is called often.
        eps: of the normalisation by the root mean square.
    """

    def __init__(
        self,
        query_dim: int,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        *,
        gated: bool = False,
        interleaved: bool = False,
        packed: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        linear = Linear if packed else nn.Linear
        inner = heads * head_dim
        context_dim = query_dim if context_dim is None else context_dim
        self.heads, self.interleaved = heads, interleaved
        self.norm_q = nn.RMSNorm(inner, eps=eps)
        self.norm_k = nn.RMSNorm(inner, eps=eps)
        self.to_q = linear(query_dim, inner)
        self.to_k = linear(context_dim, inner)
        self.to_v = linear(context_dim, inner)
        self.to_out = nn.ModuleList([linear(inner, query_dim)])
        self.to_gate_logits = linear(query_dim, heads) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        rotation: Rotation | None = None,
        context_rotation: Rotation | None = None,
        mask: Tensor | None = None,
        perturbed: bool | Tensor = False,
    ) -> Tensor:
        """Attends from `x` `[B, T, D]` to `context` `[B, T', D']`, or to itself; returns `[B, T, D]`.

        Args:
            x: the tokens that ask.
            context: the tokens that answer.
            rotation: that of `x`; none rotates neither.
            context_rotation: that of `context`, where it is not the same.
            mask: as `scaled_dot_product_attention` takes it, for all heads: `[B, 1, T or 1, T']`.
            perturbed: each token takes its own value instead of attending; for some of the batch, where it is `[B]`
                (Hyung et al., "Spatiotemporal Skip Guidance", 2024).
        """
        context = x if context is None else context
        v = self.to_v(context).unflatten(-1, (self.heads, -1))  # [B, T', heads, head_dim]
        if perturbed is True:
            out = v
        else:
            q = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
            k = self.norm_k(self.to_k(context)).unflatten(-1, (self.heads, -1))
            if rotation is not None:
                q = rotation.rotate(q, interleaved=self.interleaved)
                k = (context_rotation or rotation).rotate(k, interleaved=self.interleaved)
            q, k, values = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            out = F.scaled_dot_product_attention(q, k, values, attn_mask=mask).transpose(1, 2)
            if isinstance(perturbed, Tensor):
                out = torch.where(perturbed[:, None, None, None], v, out)
        if self.to_gate_logits is not None:
            out = out * (2 * self.to_gate_logits(x).sigmoid())[..., None]
        result: Tensor = self.to_out[0](out.flatten(2))
        return result


class GELU(nn.Module):
    """A linear layer and the tanh form of GELU (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)."""

    def __init__(self, dim_in: int, dim_out: int, *, bias: bool = True, packed: bool = False) -> None:
        super().__init__()
        self.proj = (Linear if packed else nn.Linear)(dim_in, dim_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., dim_in]` to `[..., dim_out]`."""
        return F.gelu(self.proj(x), approximate="tanh")


class GELUFeedForward(nn.Module):
    """Four times the width and back. The key `net.2` leaves the place of a dropout that inference lacks."""

    def __init__(self, dim: int, *, bias: bool = True, packed: bool = False) -> None:
        super().__init__()
        last = (Linear if packed else nn.Linear)(dim * 4, dim, bias=bias)
        self.net = nn.Sequential(GELU(dim, dim * 4, bias=bias, packed=packed), nn.Identity(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., D]` to `[..., D]`."""
        result: Tensor = self.net(x)
        return result
