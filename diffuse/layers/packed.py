"""Linear layers and convolutions that reorder their weights once, at first use, for the processor.

PyTorch rearranges a published weight for the processor at every call. For a convolution of the small maps in a U-Net's
lower levels that takes longer than the convolution itself, and for a linear layer over the 77 tokens of a text up to
two fifths of the time. On a CPU weights are therefore packed into the blocks that oneDNN computes with. It happens at
first use rather than at loading, so that a weight that is mapped from a file is not read before it is needed.

Nothing of this shows outside a layer: the state dict holds weights as they are published; a module that is moved,
converted, copied or pickled has them plain again until its next use; one in training, or under autocast, is left as it
is. Results do not depend on which input came first.

The operators `torch.ops.mkldnn` and the overridden `_apply` and `_save_to_state_dict` are private to PyTorch. No public
interface computes with a reordered weight: `torch.utils.mkldnn` converts whole modules and their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Packed(nn.Module):
    """The base of both kinds of layer. A packed weight has no strides: it is a tensor of oneDNN's own layout."""

    weight: Tensor

    def _packs(self, x: Tensor, weight: Tensor) -> bool:
        """Tells whether oneDNN can be called directly, without the conversions and gradients that PyTorch adds."""
        if torch.compiler.is_compiling():  # the compiler orders weights itself, and does not know oneDNN's layout
            return False
        plain = x.dtype == weight.dtype and x.is_cpu and not (x.requires_grad or weight.requires_grad)
        return plain and _has_onednn(x.dtype) and not torch.is_autocast_enabled("cpu")

    def _replace(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # so that whoever holds the module may move and change it
            changed = change(self.weight)
        if changed is not self.weight:
            self.weight = nn.Parameter(changed, requires_grad=False)
        return self.weight

    def _unpack(self) -> None:
        if self.weight.is_mkldnn:
            self._replace(lambda packed: self._dense())

    def _dense(self) -> Tensor:
        return self.weight.to_dense()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._unpack()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        self._unpack()
        return self.__dict__

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[f"{prefix}weight"] = self._dense()


class Linear(_Packed, nn.Linear):
    """A linear layer with a packed weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., D]` to `[..., D']`."""
        weight = self.weight
        if _is_plain(weight) or not self._packs(x, weight):
            self._unpack()
            return F.linear(x, self.weight, self.bias)
        if not weight.is_mkldnn:
            weight = self._replace(torch.ops.mkldnn._reorder_linear_weight)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        return result


class _PackedConv(_Packed):
    """The base of both convolutions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: Tensor | None
    memory_format: ClassVar[torch.memory_format]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, *sides]` to `[B, C', *sides']`."""
        weight = self.weight
        if not self._packs(x, weight):
            self._unpack()
            if not (
                weight.requires_grad or torch.compiler.is_compiling()
            ):  # a kernel in training stays the object that its optimizer knows
                self._replace(self._laid_out)
            result: Tensor = super().forward(x)
            return result
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        if not weight.is_mkldnn:
            weight = self._replace(lambda old: torch.ops.mkldnn._reorder_convolution_weight(old, *geometry, x.shape))
        result = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *geometry, "none", [], "")
        return result

    def _laid_out(self, weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=self.memory_format)


class Conv1d(_Packed, nn.Conv1d):
    """A convolution of sequences, the same as one of maps of one row; they, too, lie channels last in memory."""

    padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C', T']`."""
        weight = self.weight
        if not self._packs(x, weight):
            self._unpack()
            return super().forward(x)
        geometry = ((0, *self.padding), (1, *self.stride), (1, *self.dilation), self.groups)
        row = x.unsqueeze(2)
        if not weight.is_mkldnn:
            weight = self._replace(
                lambda old: torch.ops.mkldnn._reorder_convolution_weight(old.unsqueeze(2), *geometry, row.shape)
            )
        result = torch.ops.mkldnn._convolution_pointwise(row, weight, self.bias, *geometry, "none", [], "")
        squeezed: Tensor = result.squeeze(2)
        return squeezed

    def _dense(self) -> Tensor:
        return self.weight.to_dense().squeeze(2)


class Conv2d(_PackedConv, nn.Conv2d):
    """A convolution of maps that lie channels last in memory. A kernel that is not packed is brought to lie so, too."""

    memory_format = torch.channels_last


class Conv3d(_PackedConv, nn.Conv3d):
    """A convolution of films that lie channels last in memory, and whose kernel does, as `Conv2d`'s."""

    memory_format = torch.channels_last_3d


def packed_bytes(layer: nn.Module) -> int:
    """Returns the bytes of the copy of its weight that a layer packs on a CPU; 0 for a layer that packs none."""
    if not isinstance(layer, _Packed) or not _has_onednn(layer.weight.dtype):
        return 0
    plain = isinstance(layer, Linear) and _is_plain(layer.weight)
    return 0 if plain else layer.weight.numel() * layer.weight.element_size()


def _is_plain(weight: Tensor) -> bool:
    """Tells whether PyTorch gives the linear layer to another library than oneDNN that is no slower.

    In float32 calls of it cost less, and without AVX-512 it multiplies as fast.
    """
    return weight.dtype == torch.float32 and (weight.numel() <= 1 << 16 or not _has_avx512())


@cache
def _has_avx512() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
