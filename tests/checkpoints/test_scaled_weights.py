"""Files of fp8 weights with scales are read as the product of both, in every spelling; other formats are refused."""

from __future__ import annotations

from pathlib import Path

import ldm_files
import pytest
import small_checkpoints
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffuse.checkpoints.single_file import SingleFile
from diffuse.errors import CheckpointError

CPU = torch.device("cpu")


def scaled(tensors: dict[str, Tensor], name: str, *, rows: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights as fp8 with scales of that name, and the weights that they stand for."""
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        fused = part == "in_proj_weight"  # which has a scale of its own name in no file
        if tensor.ndim < 2 or part != "weight" or fused or "embedding" in key:
            stored[key] = meant[key] = tensor
            continue
        flat = tensor.float().flatten(1)
        scale = flat.abs().amax(1) / 448 if rows else flat.abs().amax() / 448
        by_row = scale.view(-1, *[1] * (tensor.ndim - 1)) if rows else scale
        stored[key] = (tensor / by_row).to(torch.float8_e4m3fn)
        stored[f"{layer}.{name}"] = scale.unsqueeze(-1) if rows else scale
        stored[f"{layer}.{'scale_input' if name == 'scale_weight' else 'input_scale'}"] = torch.ones(())
        meant[key] = stored[key].float() * by_row
    return stored, meant


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A single file of an SDXL-like model."""
    return ldm_files.tensors_of(small_checkpoints.build(tmp_path_factory.mktemp("folder") / "sdxl", "sdxl"), "sdxl")


@pytest.mark.parametrize(("name", "rows"), [("scale_weight", False), ("weight_scale", True)])
def test_weights_are_the_products(name: str, rows: bool, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    stored, meant = scaled(tensors, name, rows=rows)
    stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    for path, content in (("fp8", stored), ("full", meant)):
        save_file({key: value.contiguous() for key, value in content.items()}, tmp_path / f"{path}.safetensors")
    ours, full = (SingleFile(tmp_path / f"{each}.safetensors", each) for each in ("fp8", "full"))
    assert ours.config("unet") == full.config("unet")
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for mine, theirs in zip(ours.tensor_files(component), full.tensor_files(component), strict=True):
            assert mine.tensors.keys() == theirs.tensors.keys()
            for dtype in (torch.float32, torch.bfloat16):
                read = mine.read(dict.fromkeys(mine.tensors, dtype), CPU)
                expected = theirs.read(dict.fromkeys(mine.tensors, dtype), CPU)
                assert [key for key in read if not torch.equal(read[key], expected[key])] == [], component


def test_the_parts_of_a_fused_weight_have_their_rows_scales(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Those of OpenCLIP, whose scale is beside `in_proj_weight` in no file that is known: a plain cast."""
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    cast = {**tensors, key: tensors[key].to(torch.float8_e5m2)}
    save_file(cast, tmp_path / "cast.safetensors")
    (file,) = SingleFile(tmp_path / "cast.safetensors", "cast").tensor_files("text_encoder_2")
    parts = [f"text_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    read = file.read(dict.fromkeys(parts, torch.float32), CPU)
    assert torch.equal(torch.cat([read[part] for part in parts]), cast[key].float())


FP8 = torch.zeros(256, 128, dtype=torch.float8_e4m3fn)
REFUSED = {
    "nvfp4": {
        "a.weight": torch.zeros(256, 64, dtype=torch.uint8),
        "a.weight_scale": FP8,
        "a.weight_scale_2": torch.ones(()),
    },
    "blocks": {"a.weight": FP8, "a.weight_scale": torch.ones(2, 1, 2)},
    "rows of another": {"a.weight": FP8, "a.scale_weight": torch.ones(200)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_formats_are_refused_by_name(name: str, tmp_path: Path) -> None:
    save_file(REFUSED[name], tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\S* is stored .* not implemented"):
        SingleFile(tmp_path / "a.safetensors", "a.safetensors").tensor_files("unet")
