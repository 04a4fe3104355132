"""Weights that are published as 8-bit floating point, with a scale beside each: the weight is the product of both.

The scale of a layer is `scale_weight` in files as ComfyUI first wrote them, with a tensor `scaled_fp8` that marks them,
and `weight_scale` in newer ones and in those of Lightricks. It is one number, or one for each row. Scales of inputs are
for arithmetic in 8 bits, which is not done here. Weights that are merely rounded to 8 bits have no scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from diffuse.errors import CheckpointError

if TYPE_CHECKING:
    from diffuse.checkpoints.safetensors_file import StoredTensor

_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("weight_scale", "scale_weight")
_OF_INPUTS = ("input_scale", "scale_input", "scaled_fp8", "comfy_quant")
_OTHER_FORMATS = ("weight_scale_2", "pre_quant_scale")  # what a layer has in nvfp4 and other formats of blocks
_NUMBERS = ("F32", "F16", "BF16")


def with_scales(entries: Mapping[str, StoredTensor], name: str) -> dict[str, StoredTensor]:
    """Returns the tensors of a file with their scales in the place of the tensors that hold them.

    Raises:
        CheckpointError: weights are stored in a format that is not implemented, or a scale does not fit.
    """
    if not any(entry.dtype in _FLOAT8 or key.endswith(_OTHER_FORMATS) for key, entry in entries.items()):
        return dict(entries)
    result: dict[str, StoredTensor] = {}
    for key, entry in entries.items():
        layer, _, part = key.rpartition(".")
        if part in _OTHER_FORMATS or (part in _SCALES and entry.dtype not in _NUMBERS):
            raise CheckpointError(
                f"{name}: {layer:.100} is stored in a format of blocks, such as nvfp4, which is not implemented; use a "
                "file in fp8, or one that is not quantized"
            )
        if part in _OF_INPUTS or (part in _SCALES and f"{layer}.weight" in entries):
            continue
        scale = next((entries[own] for each in _SCALES if (own := f"{layer}.{each}") in entries), None)
        if part == "weight" and scale is not None:
            count, rows = math.prod(scale.shape), entry.shape[0] if entry.shape else 1
            one_axis = sum(size != 1 for size in scale.shape) <= 1
            if entry.dtype not in _FLOAT8 or count not in (1, rows) or not one_axis:
                raise CheckpointError(
                    f"{name}: {key:.100} is stored as {entry.dtype} with scales {list(scale.shape)}, which "
                    "is not implemented; use a file in fp8 with one scale, or one for each row"
                )
            entry = replace(entry, scale=replace(scale, shape=(count,)))
        result[key] = entry
    return result
