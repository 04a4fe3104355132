"""GGUF files: what they hold, and files that are cut short, damaged or made to fill the memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf_files
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from diffuse.checkpoints.gguf.gguf_file import open_gguf
from diffuse.checkpoints.torch_files.torch_file import open_weights_file
from diffuse.errors import CheckpointError

CPU = torch.device("cpu")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TENSORS = {
    "a.weight": noise(24, 64),
    "b.weight": noise(16, 12, 3, 3),  # rows of 3
    "c.weight": noise(2100, 512),  # more than is unpacked at a time
    "c.bias": noise(40),
    "d.weight": noise(40, 7),
}
KINDS = {"a.weight": "Q4_0", "b.weight": "Q8_0", "c.weight": "Q5_1", "d.weight": "F16"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return path, gguf_files.write(path, TENSORS, KINDS, "sd1")


def test_tensors_are_those_that_the_package_reads(made: tuple[Path, dict[str, Tensor]]) -> None:
    path, expected = made
    file = open_weights_file(path, "a.gguf")
    assert {key: info.shape for key, info in file.tensors.items()} == {
        key: tuple(tensor.shape) for key, tensor in TENSORS.items()
    }
    read = file.read(dict.fromkeys(expected, torch.float32), CPU)
    assert all(torch.equal(read[key], expected[key]) for key in expected)
    halves = file.read(dict.fromkeys(expected, torch.bfloat16), CPU)
    assert all(torch.equal(halves[key], expected[key].bfloat16()) for key in expected)


def test_a_file_that_is_cut_anywhere_is_one_line(made: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    content = made[0].read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (*range(4, 700, 9), len(content) // 2, len(content) - 40):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            open_gguf(cut, "cut.gguf")
    named = tmp_path / "a.safetensors"
    named.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is a GGUF file; rename it"):
        open_weights_file(named, "a.safetensors")
    cut.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty|cut short"):
        open_weights_file(cut, "cut.gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int, settings: int, rest: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, settings) + rest


def tensor(kind: int, *axes: int, offset: int = 0, name: str = "a.weight") -> bytes:
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


NAMED = {kind.name: kind.value for kind in GGMLQuantizationType}
HOSTILE = {
    "many tensors": (header(1 << 40, 0, b""), "more than any model has"),
    "many settings": (header(0, 1 << 62, b""), "more than any model has"),
    "a long name": (header(0, 1, struct.pack("<Q", 1 << 60)), "bytes long"),
    "a long text": (header(0, 1, text("a") + struct.pack("<IQ", 8, 1 << 60)), "cut short"),
    "a long list": (header(0, 1, text("a") + struct.pack("<IIQ", 9, 4, 1 << 61)), "cut short"),
    "a list of many texts": (header(0, 1, text("a") + struct.pack("<IIQ", 9, 8, 1 << 50)), "texts"),
    "a list of lists": (header(0, 1, text("a") + struct.pack("<IIQ", 9, 9, 1 << 50)), "list of type 9"),
    "an odd setting": (header(0, 1, text("a") + struct.pack("<I", 77)), "type 77"),
    "many axes": (header(1, 0, text("a") + struct.pack("<I", 1 << 30)), "axes"),
    "half a block": (header(1, 0, tensor(NAMED["Q4_K"], 200, 3)), "whole blocks"),
    "a large tensor": (header(1, 0, tensor(NAMED["F32"], 1 << 50)), "cut short at a.weight"),
    "far away": (header(1, 0, tensor(NAMED["F32"], 1, offset=1 << 60)), "cut short at a.weight"),
    "one in another": (header(3, 0, b"".join(tensor(0, 8, name=each) for each in "abc")), "lie in one another"),
    "twice": (header(2, 0, 2 * tensor(NAMED["F32"], 0)), "twice"),
    "unknown bits": (
        header(1, 0, tensor(NAMED["IQ4_XS"], 256)),
        "stored as IQ4_XS, which is not implemented",
    ),
    "an unknown type": (header(1, 0, tensor(12345, 256)), "stored as type 12345"),
    "another family": (header(0, 1, text("general.architecture") + struct.pack("<I", 8) + text("flux")), "of flux"),
    "an odd alignment": (header(0, 1, text("general.alignment") + struct.pack("<II", 4, 3)), "aligned to 3"),
    "another shape": (
        header(1, 1, text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQi", 9, 5, 1, 5) + tensor(0, 4)),
        "cannot have the shape",
    ),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "other order of bytes"),
    "an old version": (header(0, 0, b"", version=1), "version 1"),
    "no text": (header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe"), "no text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_one_line_and_takes_no_memory(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(content + bytes(64))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=words) as refused:
            open_gguf(path, "a.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(refused.value).startswith("a.gguf: ") and "\n" not in str(refused.value)
