"""The bytes of tensors on the meta device, operator by operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.plan.live_bytes import Ledger, LiveBytes, make_anew, specify

KIB = 1 << 10
BIG = 16 * 16 * 4  # bytes of `x` below


def followed(compute: Callable[[Tensor], object], *, rounded: bool = False) -> tuple[Ledger, Ledger, int]:
    """The ledgers of the meta device and of the CPU, and the operations, of `compute(x)` with x `[16, 16]`."""
    device, host = Ledger(), Ledger()
    x = torch.empty(16, 16, device="meta")
    with torch.inference_mode(), (mode := LiveBytes(device, host, rounded=rounded)):
        kept = compute(x)
        assert kept is None or device.now >= 0
        del kept
    return device, host, mode.flops


@pytest.mark.parametrize(
    ("compute", "peak"),
    [
        (lambda x: x + 1, BIG),
        (lambda x: (x + 1) + 1, 2 * BIG),
        (lambda x: ((x + 1) + 1) + 1, 2 * BIG),  # the first has died
        (lambda x: x.view(4, 64).t()[:2], 0),
        (lambda x: x.add_(1), 0),
        (lambda x: torch.empty(8, 16, device="meta").copy_(x[:8]), BIG // 2),
        (lambda x: torch.mul(x, 2, out=x), 0),
        (lambda x: x.to(torch.float64), 2 * BIG),
        (lambda x: x.to(torch.float32), 0),
        (lambda x: F.linear(x, x), BIG),
    ],
)
def test_what_is_made_and_alive_counts(compute: Callable[[Tensor], object], peak: int) -> None:
    device, host, _ = followed(compute)
    assert (device.peak, device.now, host.peak) == (peak, 0, 0)


def test_cuda_counts_in_blocks() -> None:
    assert followed(lambda x: x[0] + 1, rounded=True)[0].peak == 512


def test_attention_makes_no_matrix_of_weights_and_its_operations_count() -> None:
    def attend(x: Tensor) -> None:
        q = torch.empty(2, 4, 1000, 8, device="meta")
        F.scaled_dot_product_attention(q, q, q)

    device, _, flops = followed(attend)
    tokens = 2 * 4 * 1000 * 8 * 4
    assert device.peak == tokens + tokens + 2 * 4 * 1000 * 4  # queries, result, one float32 a query
    assert flops == 4 * 2 * 4 * 1000 * 1000 * 8


def test_operations_of_convolutions_and_products() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, device="meta")
    assert followed(lambda x: layer(torch.empty(2, 3, 16, 16, device="meta")))[2] == 2 * 2 * 256 * 5 * 27
    assert followed(lambda x: x @ x)[2] == 2 * 16**3


def test_a_tensor_that_leaves_for_the_cpu_has_values() -> None:
    def look(x: Tensor) -> None:
        assert x.cpu().shape == x.shape and float((x.cpu() / 2 + 0.5).sum()) == 128
        assert bool(torch.isfinite(x).all()) and int(x.sum().item()) == 1

    device, host, _ = followed(look)
    assert host.peak >= BIG and device.now == host.now == 0


def test_results_are_made_anew_with_their_shared_storages() -> None:
    base = torch.empty(4, 6, device="meta")
    first, second, others = make_anew(specify((base, base.t()[1:], {"a": [base.half()], "b": 3})))
    assert first.stride() == (6, 1) and second.shape == (5, 4) and second.stride() == (1, 6)
    assert second.untyped_storage()._cdata == first.untyped_storage()._cdata
    assert others["a"][0].dtype == torch.float16 and others["b"] == 3
