"""Two-dimensional convolution of feature maps that lie channels last in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, whose kernel is brought once, when it is first used, into the order in which it will be read.

    PyTorch rearranges a published kernel at every call, and for the small maps of a U-Net's lower levels that takes
    longer than the convolution. On a CPU the kernel is therefore packed into the blocks that oneDNN computes with, and
    elsewhere it is laid channels last, as the maps are. Done at first use rather than at loading, a kernel that is
    mapped from a file is not read before it is needed. The state dict holds kernels as they are published, and a module
    that is moved or converted has them plain again until its next use. A kernel in training stays the object that its
    optimizer knows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        if self.weight.requires_grad:
            return super().forward(x)
        if not self._packs(x):
            self._unpack()
            self._replace(_channels_last)
            return super().forward(x)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        if not self.weight.is_mkldnn:
            self._replace(lambda weight: torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape))
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *geometry, "none", [], "")
        return result

    def _packs(self, x: Tensor) -> bool:
        """Whether oneDNN can be asked directly: without the conversions and gradients that PyTorch adds."""
        plain = not x.requires_grad and not torch.is_autocast_enabled("cpu")
        return plain and x.device.type == "cpu" and x.dtype == self.weight.dtype and _has_onednn(x.dtype)

    def _unpack(self) -> None:
        if self.weight.is_mkldnn:
            self._replace(Tensor.to_dense)

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():  # so that whoever holds the module may move and change it
            changed = change(self.weight)
        if changed is not self.weight:
            self.weight = nn.Parameter(changed, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[f"{prefix}weight"] = self.weight.to_dense()


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)
