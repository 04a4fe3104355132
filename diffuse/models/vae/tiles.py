"""Square tiles that are computed independently of one another, and blended where they meet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def blend_tiles(
    x: Tensor, tile: int, overlap: int, scale: tuple[int, int], compute: Callable[[Tensor], Tensor]
) -> Tensor:
    """Computes a map `[1, C, H, W]` in tiles, and blends their results to `[1, C', H * a / b, W * a / b]`.

    Args:
        tile: side of a square tile, in rows of `x`; with `overlap`, a multiple of `b`.
        overlap: rows that neighbouring tiles share.
        scale: `a` and `b`, rows of the result for rows of `x`.
        compute: maps a tile to its part of the result.
    """
    height, width = x.shape[-2:]
    more, fewer = scale
    shape = height * more // fewer, width * more // fewer
    shared = max(overlap * more // fewer, 1)
    result = weight = x.new_zeros(1, 1, *shape, dtype=torch.float32)
    for top in _starts(height, tile, overlap, fewer):
        for left in _starts(width, tile, overlap, fewer):
            part = compute(x[..., top : top + tile, left : left + tile])
            rows, columns = part.shape[-2:]
            if result is weight:
                result = x.new_zeros(1, part.shape[1], *shape, dtype=torch.float32)
            ramp = _ramp(rows, shared, part.device)[:, None] * _ramp(columns, shared, part.device)
            y, z = top * more // fewer, left * more // fewer
            result[..., y : y + rows, z : z + columns] += part * ramp
            weight[..., y : y + rows, z : z + columns] += ramp
    return (result / weight).to(x.dtype)


def _starts(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Returns where tiles begin so that they cover `size`; the last is moved back, and ends there or just before it."""
    last = max(-(-(size - tile) // multiple) * multiple, 0)
    return [*range(0, last, tile - overlap), last]


def _ramp(size: int, overlap: int, device: torch.device) -> Tensor:
    """Returns weights `[size]` that rise over the first `overlap` rows and fall over the last. None is zero."""
    distance = torch.arange(1, size + 1, device=device, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=overlap)
