"""Writes safetensors files tensor by tensor, so that no more than one tensor is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffuse.checkpoints.tensor_reading import DTYPES


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of a file: its name, dtype and shape, and how its numbers are read `[...]` when they are written."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Counts its bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_weights(path: Path, tensors: Sequence[WrittenTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file.

    Source: the format as its page in the repository of safetensors describes it.

    Raises:
        OSError: it cannot be written.
        CheckpointError: a tensor cannot be read.
    """
    # Wider numbers first, so that each lies where processors like it.
    tensors = sorted(tensors, key=lambda tensor: (-DTYPES[tensor.dtype].itemsize, tensor.key))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = tensor.read()
            if tuple(values.shape) != tensor.shape:
                raise RuntimeError(f"{tensor.key}: has the shape {tuple(values.shape)} and not {tensor.shape}")
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def split_shards(tensors: Sequence[WrittenTensor], most: int) -> list[list[WrittenTensor]]:
    """Returns the tensors in groups of at most `most` bytes, or of a single one that is larger."""
    shards: list[list[WrittenTensor]] = []
    size = 0
    for tensor in tensors:
        if not shards or size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards
