"""Files are those that safetensors reads, whatever the order and size of their tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffuse.convert.weights_writer import WrittenTensor, split_shards, write_weights

TENSORS = {
    "half": torch.randn(3).half(),
    "brain": torch.randn(2, 3).bfloat16(),
    "plain": torch.randn(3, 4).t(),
    "number": torch.tensor(2.0),
    "empty": torch.zeros(0, 4),
    "double": torch.randn(1).double(),
}
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


def written() -> list[WrittenTensor]:
    return [
        WrittenTensor(key, DTYPES[tensor.dtype], tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
        for key, tensor in TENSORS.items()
    ]


def test_safetensors_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_weights(file, written(), {"format": "pt"})
    found = load_file(file)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in TENSORS.items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    with pytest.raises(FileExistsError):
        write_weights(file, written(), {})


def test_shards_are_as_large_as_they_may_be() -> None:
    tensors = written()
    assert split_shards(tensors, 10**6) == [tensors]
    assert [[each.key for each in shard] for shard in split_shards(tensors, 20)] == [
        ["half", "brain"],
        ["plain"],
        ["number", "empty", "double"],
    ]
