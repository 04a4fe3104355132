"""Weights in fewer bits: the codes are those of the formulas, and a layer computes with what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from model_peers import noise
from torch import Tensor, nn

from diffuse.layers import quantized
from diffuse.layers.packed import Conv2d, Linear
from diffuse.layers.quantized import Quantization, QuantizedLayer, quantize_layers, relative_error
from diffuse.schema import Storage

STORAGES = (Storage.fp8, Storage.int8, Storage.nf4)
ERRORS = {Storage.fp8: 0.026, Storage.int8: 0.0075, Storage.nf4: 0.092}  # of 512 normally distributed weights a row
BYTES = {Storage.fp8: 1, Storage.int8: 1, Storage.nf4: 0.5}


def layer(kind: str) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(0)
    return Linear(80, 24) if kind == "linear" else Conv2d(12, 20, 3, padding=1, stride=2)


def filled(kind: str, storage: Storage) -> tuple[nn.Linear | nn.Conv2d, QuantizedLayer]:
    plain = layer(kind)
    stored = QuantizedLayer(plain, storage)
    stored.fill(plain.weight.detach())
    return plain, stored


def by_formula(weight: Tensor, storage: Storage) -> Tensor:
    """The stored weight, element by element, in double precision."""
    rows = (weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1)).double().flatten(1)
    if storage is Storage.nf4:
        flat = rows.flatten()
        blocks = F.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        values = torch.tensor(quantized.NF4, dtype=torch.float64)
        nearest = (blocks / largest.clamp_min(1e-300)).unsqueeze(-1).sub(values).abs().argmin(-1)
        result = (values[nearest] * largest).flatten()[: len(flat)].view(rows.shape)
    elif storage is Storage.int8:
        scale = rows.abs().amax(1, keepdim=True) / 127
        result = (rows / scale).round() * scale
    else:
        scale = rows.abs().amax(1, keepdim=True) / 448
        codes = rows / scale
        step = torch.exp2(codes.abs().clamp_min(2**-6).log2().floor() - 3)  # three bits behind the leading one
        result = (codes / step).round() * step * scale
    return result if weight.ndim == 2 else result.view(weight.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_layer_computes_with_what_its_codes_stand_for(kind: str, storage: Storage) -> None:
    plain, stored = filled(kind, storage)
    weight = stored.weight_as(torch.float32)
    torch.testing.assert_close(weight.double(), by_formula(plain.weight, storage), rtol=1e-6, atol=1e-7)
    x = noise(3, 80) if kind == "linear" else noise(2, 12, 9, 8)
    plain.weight.copy_(weight)
    torch.testing.assert_close(stored(x), plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(stored.weight_as(torch.bfloat16), weight.bfloat16()), "rounded once"
    scales = stored.scale.nbytes
    assert stored.codes.nbytes == pytest.approx(BYTES[storage] * weight.numel(), abs=32)
    assert scales == 4 * (-(-weight.numel() // 64) if storage is Storage.nf4 else len(weight))


@pytest.mark.parametrize("storage", STORAGES)
def test_the_error_is_measured_and_that_of_the_format(storage: Storage) -> None:
    plain = Linear(512, 64)
    weight = noise(64, 512)
    stored = QuantizedLayer(plain, storage)
    stored.fill(weight)
    lost = (stored.weight_as(torch.float32) - weight).norm() / weight.norm()
    assert relative_error(stored) == pytest.approx(float(lost), rel=1e-4)
    assert 0.8 * ERRORS[storage] < float(lost) < 1.05 * ERRORS[storage]
    assert relative_error(plain) is None


@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_codes_come_whatever_is_done_at_a_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, at_once = filled("linear", storage)
    monkeypatch.setattr(quantized, "_QUANTIZED_AT_ONCE", 300)
    monkeypatch.setattr(quantized, "_UNPACKED_AT_ONCE", 640)
    _, in_parts = filled("linear", storage)
    assert torch.equal(at_once.codes.view(torch.uint8), in_parts.codes.view(torch.uint8))
    assert torch.equal(at_once.weight_as(torch.float32), in_parts.weight_as(torch.float32))


@pytest.mark.parametrize("storage", STORAGES)
def test_zeros_stay_and_what_is_not_finite_is_refused(storage: Storage) -> None:
    stored = QuantizedLayer(Linear(80, 24), storage)
    weight = noise(24, 80)
    weight[3] = 0
    stored.fill(weight)
    assert not stored.weight_as(torch.float32)[3].any()
    weight[5, 7] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        stored.fill(weight)


def test_layers_that_are_kept_stay_as_they_are() -> None:
    module = nn.ModuleDict(
        {"first": Linear(8, 8), "first_more": Linear(8, 8), "blocks": nn.ModuleList([Conv2d(8, 8, 1)])}
    )
    module["norm"] = nn.LayerNorm(8)
    layers = quantize_layers(module, Quantization(Storage.int8, ("first",)))
    assert layers.keys() == {"first_more.weight", "blocks.0.weight"}
    assert type(module["first"]) is Linear and type(module["norm"]) is nn.LayerNorm
    assert {name for name, _ in module.named_parameters()} >= {"first.weight", "first_more.bias", "blocks.0.bias"}


@dataclass
class Doubling:
    """A change that multiplies a weight."""

    factors: Mapping[str, Tensor]

    def change(self, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        return weight * factors["by"]


def test_a_change_is_put_on_at_each_call_and_leaves_no_trace() -> None:
    _, stored = filled("linear", Storage.nf4)
    x, codes = noise(3, 80), stored.codes.clone()
    before = stored(x)
    for by in (2.0, 3.0):
        stored.set_change(Doubling({"by": torch.tensor(by)}))
        torch.testing.assert_close(stored(x) - stored.bias, by * (before - stored.bias), rtol=1e-4, atol=1e-5)
        assert len(dict(stored.named_buffers())) == 3, "it moves with the layer"
    stored.set_change(Doubling({"by": torch.tensor(1.3)}))
    once = stored.weight_as(torch.float32).bfloat16()
    assert torch.equal(stored.weight_as(torch.bfloat16), once), "rounded once"
    stored.set_change(None)
    assert torch.equal(stored(x), before) and torch.equal(stored.codes, codes)
    assert len(dict(stored.named_buffers())) == 2
