"""Linear layers and convolutions whose weights are stored in fewer bits, and made anew at each call.

Storage alone is smaller: a layer computes with a weight in the precision of its input, which it makes of the codes
when it is called and drops afterwards. That takes time, and saves none.

- `fp8`: each weight as 8-bit floating point, four bits of exponent (Micikevicius et al., "FP8 Formats for Deep
  Learning", 2022), with one scale for each row of outputs;
- `int8`: each weight as a whole number from -127 to 127, with one scale for each row;
- `nf4`: each weight as one of 16 values that are equally likely in a normal distribution, with the largest of each 64
  as their scale (Dettmers et al., "QLoRA", 2023). The codes are those of bitsandbytes.

The same codes come of the same weight on every device, and the same weight of the same codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.schema import Storage

_BLOCK = 64  # weights that share a scale in nf4
_QUANTIZED_AT_ONCE = 256 << 10  # weights, which bounds what that takes beside them
_UNPACKED_AT_ONCE = 4 << 20
_TINY = torch.finfo(torch.float32).tiny
_LARGEST = {Storage.fp8: 448.0, Storage.int8: 127.0}
_DTYPES = {Storage.fp8: torch.float8_e4m3fn, Storage.int8: torch.int8}
# The quantiles of a normal distribution, from -1 to 1 and with 0 among them (QLoRA, appendix E).
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class WeightChange(Protocol):
    """A change that is made to a layer's weight whenever the layer is called, such as that of a LoRA file."""

    @property
    def factors(self) -> Mapping[str, Tensor]:
        """Maps the names of its tensors to them, `[...]` each; the layer keeps them where it is itself."""
        ...

    def change(self, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """Returns the changed weight, float32 as `weight` `[O, I, ...]`, from its factors where they are now."""
        ...


@dataclass(frozen=True)
class Quantization:
    """The way in which a component's weights are stored.

    Attributes:
        storage: fp8, int8 or nf4.
        exceptions: the beginnings of the paths of layers that stay in full precision, such as `conv_in`.
    """

    storage: Storage
    exceptions: tuple[str, ...] = ()

    def keeps(self, path: str) -> bool:
        """Returns whether a layer stays in full precision."""
        return any(f"{path}.".startswith(f"{name}.") for name in self.exceptions)


class QuantizedLayer(nn.Module):
    """A linear layer or a convolution that has codes and scales in the place of its weight.

    Args:
        layer: in whose place it comes; its bias stays as it is. Its weight is not read.
        storage: fp8, int8 or nf4.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self.shape = tuple(layer.weight.shape)
        self.conv = None
        if isinstance(layer, nn.Conv2d):
            self.conv = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.squared_error = self.squared_norm = 0.0  # of what was lost, and of the weight
        device = layer.weight.device
        count = math.prod(self.shape)
        if storage is Storage.nf4:
            blocks = -(-count // _BLOCK)
            codes = torch.empty(blocks * _BLOCK // 2, dtype=torch.uint8, device=device)
            scale = torch.empty(blocks, 1, dtype=torch.float32, device=device)
        else:
            codes = torch.empty(self.shape[0], count // self.shape[0], dtype=_DTYPES[storage], device=device)
            scale = torch.empty(self.shape[0], 1, dtype=torch.float32, device=device)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self._change: WeightChange | None = None
        self._factors: dict[str, str] = {}  # of the change, by the names of the buffers that hold them

    def fill(self, weight: Tensor) -> None:
        """Stores a weight, float32 `[O, I, ...]`, some rows at a time, and measures what is lost of it.

        Raises:
            ValueError: it has numbers that are not finite.
        """
        self.squared_error = self.squared_norm = 0.0
        parts = [self._fill_rows(rows) for rows in weight.split(self._rows_at_once())]
        self.codes = torch.cat([codes for codes, _ in parts])
        self.scale = torch.cat([scale for _, scale in parts])
        if not bool(torch.isfinite(self.scale).all()):
            raise ValueError("it has numbers that are not finite")

    def _fill_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the codes and scales of some rows of a weight, `[O', I, ...]`."""
        # Of a kernel with the channels last, as convolutions take it.
        matrix = (rows if rows.ndim == 2 else rows.movedim(1, -1)).reshape(len(rows), -1)
        codes, scale = _quantize_nf4(matrix) if self.storage is Storage.nf4 else _quantize_rows(matrix, self.storage)
        self.squared_norm += float(torch.linalg.vector_norm(matrix)) ** 2
        unpacked = _unpack(codes, scale, self.storage, torch.float32)
        lost = unpacked.view(-1)[: matrix.numel()].view_as(matrix).sub_(matrix)
        self.squared_error += float(torch.linalg.vector_norm(lost)) ** 2
        return codes, scale

    def _rows_at_once(self) -> int:
        """Returns how many rows are quantized at a time: whole blocks of nf4."""
        columns = math.prod(self.shape[1:])
        unit = _BLOCK // math.gcd(columns, _BLOCK)
        return max(_QUANTIZED_AT_ONCE // columns // unit, 1) * unit

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight that the codes stand for, `[O, I, ...]`, with the change that is put on it."""
        if self._change is None:
            return self._unpacked(dtype)
        factors = {name: getattr(self, buffer) for buffer, name in self._factors.items()}
        return self._change.change(self._unpacked(torch.float32), factors).to(dtype)  # rounded once

    def set_change(self, change: WeightChange | None) -> None:
        """Sets what is put on the weight at each call; None for nothing. The codes stay as they are."""
        for buffer in self._factors:
            delattr(self, buffer)
        self._change, self._factors = change, {}
        for number, (name, factor) in enumerate({} if change is None else change.factors.items()):
            self._factors[f"factor_{number}"] = name
            self.register_buffer(f"factor_{number}", factor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., D]` to `[..., D']`, or `[B, C, H, W]` to `[B, C', H', W']`."""
        weight = self.weight_as(x.dtype)
        if self.conv is None:
            return F.linear(x, weight, self.bias)
        stride, padding, dilation, groups = self.conv
        return F.conv2d(x, weight, self.bias, stride, padding, dilation, groups)

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight that the codes stand for, `[O, I, ...]`."""
        rows, columns, *sides = self.shape
        flat = _unpack(self.codes, self.scale, self.storage, dtype).view(-1)[: math.prod(self.shape)]
        return flat.view(rows, columns) if not sides else flat.view(rows, *sides, columns).movedim(-1, 1)


def quantize_layers(module: nn.Module, quantization: Quantization) -> dict[str, QuantizedLayer]:
    """Puts a quantized layer, not filled, in the place of each linear layer and convolution that is not kept.

    Returns:
        The key of each weight that has no place any more -> the layer that stores it.
    """
    layers: dict[str, QuantizedLayer] = {}
    for path, owner in list(module.named_modules()):
        for name, layer in list(owner.named_children()):
            full = f"{path}.{name}" if path else name
            if isinstance(layer, nn.Linear | nn.Conv2d) and not quantization.keeps(full):
                new = QuantizedLayer(layer, quantization.storage)
                setattr(owner, name, new)
                layers[f"{full}.weight"] = new
    return layers


def quantized_layers(module: nn.Module) -> list[QuantizedLayer]:
    """Returns the quantized layers of a module."""
    return [each for each in module.modules() if isinstance(each, QuantizedLayer)]


def relative_error(module: nn.Module) -> float | None:
    """Returns by how much the stored weights of a module are off, relative to them, as the root of the mean square.

    None where none is quantized.
    """
    layers = quantized_layers(module)
    norm = sum(each.squared_norm for each in layers)
    return math.sqrt(sum(each.squared_error for each in layers) / norm) if norm else None


def _quantize_rows(matrix: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """Returns the codes of a matrix `[O, K]`, and the scale of each row, `[O, 1]`."""
    largest = _LARGEST[storage]
    scale = (matrix.abs().amax(dim=1, keepdim=True) / largest).clamp_min_(_TINY)
    scaled = matrix / scale
    scaled = scaled.round_() if storage is Storage.int8 else scaled
    return scaled.clamp_(-largest, largest).to(_DTYPES[storage]), scale


def _quantize_nf4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the codes of a matrix, two a byte, the first in the upper half, and the scale of each block, `[N, 1]`."""
    flat = matrix.reshape(-1)
    blocks = F.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    edges = torch.tensor([(low + high) / 2 for low, high in pairwise(NF4)], device=matrix.device)
    places = torch.bucketize(blocks / scale.clamp_min(_TINY), edges, out_int32=True)
    return places[:, 0::2].mul(16).add_(places[:, 1::2]).to(torch.uint8).view(-1), scale


def _unpack(codes: Tensor, scale: Tensor, storage: Storage, dtype: torch.dtype) -> Tensor:
    """Returns the weights of codes, `[O, K]`, or `[64 N]` of nf4."""
    if storage is not Storage.nf4:
        return codes.to(dtype).mul_(scale)  # rounded once: the product is computed in float32
    result = torch.empty(2 * len(codes), dtype=dtype, device=codes.device)
    table = _pairs(codes.device)
    step = _UNPACKED_AT_ONCE // _BLOCK
    for first in range(0, len(scale), step):
        part = codes[first * _BLOCK // 2 : (first + step) * _BLOCK // 2]
        values = F.embedding(part.int(), table).view(-1, _BLOCK).mul_(scale[first : first + step])
        result[first * _BLOCK : (first + step) * _BLOCK] = values.view(-1)
    return result


@cache
def _pairs(device: torch.device) -> Tensor:
    """Returns both values of each byte, `[256, 2]`."""
    with torch.inference_mode(False):
        values = torch.tensor(NF4)
        bytes_ = torch.arange(256)
        return torch.stack((values[bytes_ // 16], values[bytes_ % 16]), dim=1).to(device)
