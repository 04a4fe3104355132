"""The precision in which attention is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_peers import noise
from torch.overrides import TorchFunctionMode

from diffuse.layers.attention import Attention


class _AttentionDtypes(TorchFunctionMode):
    """Notes the precision in which attention is computed; a CPU's kernels hide an overflow that a GPU's show."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen += [tensor.dtype for tensor in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("upcast", "dtype", "computed"),
    [
        (True, torch.float16, torch.float32),
        (False, torch.float16, torch.float16),
        (True, torch.bfloat16, torch.bfloat16),  # has float32's range
    ],
)
def test_upcast_attention_leaves_float16(upcast: bool, dtype: torch.dtype, computed: torch.dtype) -> None:
    layer = Attention(32, heads=2, head_dim=16, upcast=upcast)
    tokens = noise(1, 16, 32)
    expected = layer(tokens)
    with _AttentionDtypes() as dtypes:
        result = layer.to(dtype)(tokens.to(dtype))
    assert dtypes.seen == [computed] * 3
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.02)
