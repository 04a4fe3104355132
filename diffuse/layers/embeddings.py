"""Embeddings of timesteps: numbers become vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.packed import Linear


def sinusoidal_embedding(timesteps: Tensor, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Returns sines and cosines `[B, dim]` of `timesteps` `[B]` at `dim / 2` geometric frequencies, 1 down to 1/10000.

    They are float32 whatever the model's precision: a timestep of 981 has no neighbour in bfloat16.
    `flip_sin_to_cos` puts the cosines first; `freq_shift` moves the last frequency.

    Source: Vaswani et al., 2017, as used by Ho et al., "Denoising Diffusion Probabilistic Models", 2020.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(exponent / (half - freq_shift))[None, :]  # [B, half]
    parts = [torch.sin(angles), torch.cos(angles)]
    if flip_sin_to_cos:
        parts.reverse()
    embedding = torch.cat(parts, dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between them. With `cond_dim`, a condition of that width may be added beforehand."""

    def __init__(self, dim_in: int, dim_out: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = Linear(dim_in, dim_out)
        self.cond_proj = None if cond_dim is None else Linear(cond_dim, dim_in, bias=False)
        self.linear_2 = Linear(dim_out, dim_out)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Maps `x` `[B, dim_in]` with `condition` `[B, cond_dim]` to `[B, dim_out]`."""
        if self.cond_proj is not None and condition is not None:
            x = x + self.cond_proj(condition)
        result: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return result
