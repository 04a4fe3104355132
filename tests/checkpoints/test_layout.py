"""Variants and shards, told apart by the names of files."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoint_files import WHOLE, checkpoint, fill, message, tensors

from diffuse.checkpoints.layout import find_variants


def test_variants_are_told_apart() -> None:
    names = [
        "config.json",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model-00001-of-00002.bf16.safetensors",
        "model-00002-of-00002.bf16.safetensors",
        "model.safetensors.index.bf16.json",
        "openvino_model.safetensors",
    ]
    assert find_variants(names) == {
        None: ("diffusion_pytorch_model.safetensors",),
        "fp16": ("diffusion_pytorch_model.fp16.safetensors",),
        "non_ema": ("diffusion_pytorch_model.non_ema.safetensors",),
        "bf16": (
            "model.safetensors.index.bf16.json",
            "model-00001-of-00002.bf16.safetensors",
            "model-00002-of-00002.bf16.safetensors",
        ),
    }


def test_the_wanted_variant_is_read(tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in tensors().items()}
    files = {WHOLE: tensors(), "diffusion_pytorch_model.fp16.safetensors": other}
    plain, half = checkpoint(tmp_path, files), checkpoint(tmp_path, files, variant="fp16")
    assert torch.equal(fill(half).out.weight, fill(plain).out.weight + 1)  # type: ignore[union-attr,operator,arg-type]
    assert "no variant bf16" in (text := message(lambda: checkpoint(tmp_path, {}, variant="bf16").files("unet")))
    assert "fp16" in text and "model.variant=null" in text


def test_a_component_without_the_variant_is_read_plain(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"model.safetensors": tensors()}, component="text_encoder")
    found = checkpoint(tmp_path, {"diffusion_pytorch_model.fp16.safetensors": tensors()}, variant="fp16")
    assert [path.name for path in found.files("text_encoder")] == ["model.safetensors"]


def test_only_a_variant_is_published(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {"diffusion_pytorch_model.fp16.safetensors": tensors()})
    assert message(lambda: found.files("unet")).endswith("present: fp16; set model.variant=fp16")


def test_pickles_count_where_there_is_nothing_else(tmp_path: Path) -> None:
    names = ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"]
    assert find_variants(names) == {None: (names[0],), "fp16": (names[1],)}
    assert find_variants([*names, WHOLE]) == {None: (WHOLE,)}
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    index = "pytorch_model.bin.index.json"
    assert find_variants([*shards, index]) == {None: (index, *shards)}
    found = checkpoint(tmp_path, {"model.ckpt": b"x"})
    assert "holds only model.ckpt, and no weights under a published name" in message(lambda: found.files("unet"))


def test_an_index_of_other_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.bin", "model-00001-of-00001.bin", "model.ckpt"):
        files = {
            "model-00001-of-00001.safetensors": tensors(),
            "model.safetensors.index.json": {"weight_map": {"x": name}},
        }
        assert "not a shard of it" in message(lambda files=files: checkpoint(tmp_path, files).files("unet"))  # type: ignore[misc]
