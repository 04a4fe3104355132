"""Two-dimensional convolution of feature maps that lie channels last in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, whose kernel is brought into the order of the maps it meets, once, when it is first used.

    The models keep feature maps channels last, and published kernels are not. Left so, PyTorch rearranges a kernel at
    every call, which at small sizes is a fifth of a U-Net's step. Done at first use rather than at loading, a kernel
    that is mapped from a file is not read before it is needed. A kernel in training stays the object that its optimizer
    knows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        weight = self.weight
        if not weight.requires_grad and not weight.is_contiguous(memory_format=torch.channels_last):
            with torch.inference_mode(False):  # so that it may be moved and changed by whoever holds the module
                ordered = torch.empty_like(weight, memory_format=torch.channels_last)
            with torch.no_grad():
                ordered.copy_(weight)
            self.weight = nn.Parameter(ordered, requires_grad=False)
        return super().forward(x)
