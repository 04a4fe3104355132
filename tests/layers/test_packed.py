"""Weights are packed once, and nothing of it shows outside a layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from model_peers import FLOAT32, TWO_LEVELS, from_file, is_packed, noise
from torch import Tensor, nn

from diffuse.layers.packed import Conv1d, Conv2d, Conv3d, Linear

LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
    "convolution": (lambda: Conv2d(8, 6, 3, padding=1), noise(1, 8, 5, 7), noise(2, 8, 9, 4)),
    "film": (lambda: Conv3d(8, 6, 3, padding=(0, 1, 1)), noise(1, 8, 5, 7, 6), noise(2, 8, 3, 9, 4)),
    "sequence": (lambda: Conv1d(8, 6, 3, padding=2, dilation=2), noise(1, 8, 7), noise(2, 8, 30)),
    "linear": (lambda: Linear(128, 520), noise(5, 128), noise(2, 3, 128)),
}
CHANNELS_LAST = {"convolution": torch.channels_last, "film": torch.channels_last_3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_is_packed_once_and_only_outside_of_training(kind: str, dtype: torch.dtype) -> None:
    build, *inputs = LAYERS[kind]
    layer = build().to(dtype)
    x, other = (t.to(dtype) for t in inputs)
    if kind in CHANNELS_LAST:
        x = x.contiguous(memory_format=CHANNELS_LAST[kind])
    trained = layer.weight
    expected = layer(x)
    assert layer.weight is trained  # an optimizer may hold it
    layer.requires_grad_(False)
    torch.testing.assert_close(layer(x), expected)
    if kind not in ("film", "sequence"):  # which PyTorch's own convolutions return contiguous
        assert layer(x).stride() == expected.stride()
    packed = layer.weight
    assert packed.is_mkldnn == is_packed(dtype, kind)
    layer(other)
    assert layer.weight is packed
    assert torch.equal(layer.state_dict()["weight"], trained)
    assert torch.equal(copy.deepcopy(layer).weight, trained)
    layer(x)
    with torch.inference_mode(False):
        layer.to(torch.float16).to(dtype)  # it can still be moved, though it was made in inference mode
    assert torch.equal(layer.weight, trained.to(torch.float16).to(dtype))


@pytest.mark.parametrize("kind", LAYERS)
def test_results_do_not_depend_on_what_a_weight_was_packed_for(kind: str) -> None:
    build, x, other = LAYERS[kind]
    first = build().requires_grad_(False)
    second = copy.deepcopy(first)
    first(other)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_weight_gives_way_to_gradients_and_to_autocast(kind: str) -> None:
    build, x, _ = LAYERS[kind]
    with torch.inference_mode(False):  # as a layer that stays plain has to be built
        layer = build().requires_grad_(False)
    expected = layer(x)
    with torch.inference_mode(False):
        leaf = x.clone().requires_grad_()
        result = layer(leaf)
        result.sum().backward()
        torch.testing.assert_close(result.detach(), expected.clone(), **FLOAT32)
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0
        layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x.clone()).dtype == torch.bfloat16


def test_without_onednn_a_kernel_lies_channels_last() -> None:
    for kind, memory_format in CHANNELS_LAST.items():
        build, x, _ = LAYERS[kind]
        layer: Any = build().double().requires_grad_(False)
        layer(x.double())
        assert layer.weight.is_contiguous(memory_format=memory_format)


def test_weights_mapped_from_a_file_leave_memory_when_they_are_packed(tmp_path: Path) -> None:
    variant = replace(TWO_LEVELS, channels=(64, 128))
    model = from_file("unet", oracle.build(tmp_path, variant))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's mappings")
    before = maps.read_text().count(str(tmp_path))
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model(noise(1, 4, 8, 8), 500, noise(1, 77, 32, seed=1))
    assert before > 4
    if is_packed(torch.float32):
        assert maps.read_text().count(str(tmp_path)) == 0  # small tensors were copied
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
