"""The block formats of ggml: some weights that share scales, unpacked to float32.

Each format is described by its struct in `ggml-common.h` and by `dequantize_row_*` in `ggml-quants.c` of ggml. Products
and sums are rounded one by one, so that the weights are those of ggml's package for Python to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockFormat:
    """A format: how many weights a block has, how many bytes, and how blocks are unpacked.

    `unpack` maps uint8 `[N, nbytes]` to float32 `[N, weights]`.
    """

    weights: int
    nbytes: int
    unpack: Callable[[Tensor], Tensor]


def _half(blocks: Tensor, first: int) -> Tensor:
    """Returns the half-precision number at a byte of each block, `[N, 1]`."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).float()


def _bits(bytes_: Tensor, width: int, mask: int) -> Tensor:
    """Splits bytes `[N, M, L]` into parts of `width` bits, the lowest first: `[N, M, 8 / width, L]`."""
    shifts = torch.arange(0, 8, width, device=bytes_.device, dtype=torch.uint8).view(1, 1, -1, 1)
    return (bytes_.unsqueeze(2) >> shifts) & mask


def _nibbles(bytes_: Tensor) -> Tensor:
    """Returns the lower halves of bytes `[N, L]`, and then the upper ones: `[N, 2 L]`."""
    return torch.cat((bytes_ & 15, bytes_ >> 4), dim=1)


def _fifth_bits(bytes_: Tensor) -> Tensor:
    """Returns the bits of `[N, 4]`, the lowest of the first byte first, as 16 or 0: `[N, 32]`."""
    shifts = torch.arange(8, device=bytes_.device, dtype=torch.uint8)
    return (((bytes_.unsqueeze(-1) >> shifts) & 1) << 4).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    scale = (_half(blocks, 80) * (scales & 15).float()).unsqueeze(-1)
    least = (_half(blocks, 82) * (scales >> 4).float()).unsqueeze(-1)
    codes = _bits(blocks[:, 16:80].reshape(-1, 2, 32), 2, 3).reshape(-1, 16, 16).float()
    return (scale * codes - least).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, 96:104])
    high = _bits(blocks[:, 104:108].unsqueeze(1), 2, 3).flatten(1)
    scales = (low | (high << 4)).float() - 32
    codes = _bits(blocks[:, 32:96].reshape(-1, 2, 32), 2, 3).reshape(-1, 16, 16)
    missing = _bits(blocks[:, :32].unsqueeze(1), 1, 1).reshape(-1, 16, 16) ^ 1  # a bit that is not set takes 4 off
    scale = (_half(blocks, 108) * scales).unsqueeze(-1)
    return (scale * (codes.float() - 4 * missing.float())).flatten(1)


def _scales_of_six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scales and the least values, `[N, 8]` each, that are packed into `[N, 12]`."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), dim=1)
    least = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), dim=1)
    return scales, least


def _with_least(blocks: Tensor, codes: Tensor) -> Tensor:
    """Returns the weights of codes `[N, 8, 32]`, whose scales are in the blocks' first 16 bytes."""
    scales, least = _scales_of_six_bits(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales.float()).unsqueeze(-1)
    return (scale * codes.float() - (_half(blocks, 2) * least.float()).unsqueeze(-1)).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_least(blocks, _bits(blocks[:, 16:].reshape(-1, 4, 32), 4, 15).reshape(-1, 8, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    codes = _bits(blocks[:, 48:].reshape(-1, 4, 32), 4, 15).reshape(-1, 8, 32)
    fifth = _bits(blocks[:, 16:48].unsqueeze(1), 1, 1).reshape(-1, 8, 32)
    return _with_least(blocks, codes | (fifth << 4))


def _q6_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, :128].reshape(-1, 2, 64), 4, 15).reshape(-1, 8, 32)
    high = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2, 3).reshape(-1, 8, 32)
    codes = ((low | (high << 4)).float() - 32).reshape(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return ((_half(blocks, 208) * scales).unsqueeze(-1) * codes).flatten(1)


BLOCK_FORMATS = {
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}
