"""Blocks of few bits are unpacked to the bit as by ggml's package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from diffuse.checkpoints.gguf.blocks import BLOCK_FORMATS
from diffuse.checkpoints.gguf.gguf_file import _TYPES

SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}  # others: 0 and 2


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_weights_are_those_of_the_package_to_the_bit(name: str) -> None:
    form = BLOCK_FORMATS[name]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (300, form.nbytes), dtype=np.uint8)
    for place in SCALES.get(name, (0, 2)):
        halves = random.normal(0, 0.1, 300).astype(np.float16)
        blocks[:, place : place + 2] = halves.view(np.uint8).reshape(-1, 2)
    expected = quants.dequantize(blocks, GGMLQuantizationType[name])
    unpacked = form.unpack(torch.from_numpy(blocks))
    assert unpacked.dtype == torch.float32
    assert np.array_equal(unpacked.numpy().view(np.uint32), expected.reshape(300, -1).view(np.uint32))


def test_sizes_are_those_of_the_package() -> None:
    for number, (name, weights, nbytes) in _TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (kind.name, GGML_QUANT_SIZES[kind]) == (name, (weights, nbytes))
        if name in BLOCK_FORMATS:
            assert (BLOCK_FORMATS[name].weights, BLOCK_FORMATS[name].nbytes) == (weights, nbytes)
