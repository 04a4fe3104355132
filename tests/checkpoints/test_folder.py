"""Folders in the diffusers layout: shards, components, identity, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_files import WHOLE, checkpoint, fill, message, sharded, tensors
from safetensors.torch import save_file

import diffuse
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.errors import CheckpointError


@pytest.mark.parametrize(("variant", "style"), [("", "before"), ("fp16", "before"), ("fp16", "after")])
def test_shards_are_read_through_their_index(tmp_path: Path, variant: str, style: str) -> None:
    found = checkpoint(tmp_path, sharded(variant, style), variant=variant or None)
    assert len(found.files("unet")) == 2
    state = fill(found).state_dict()
    source = tensors(torch.float16 if variant else torch.float32)
    assert all(torch.equal(state[key], value.float()) for key, value in source.items())


def test_a_missing_shard_and_a_missing_index(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, sharded())
    (tmp_path / "unet" / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: is missing" in message(lambda: fill(found))
    (tmp_path / "unet" / "model.safetensors.index.json").unlink()
    assert "its index is missing" in message(lambda: fill(CheckpointFolder.open(tmp_path)))


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/secret.safetensors", "..\\secret.safetensors"])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    files = {"model-00001-of-00001.safetensors": tensors(), "model.safetensors.index.json": {"weight_map": {"x": name}}}
    save_file(tensors(), tmp_path / "secret.safetensors")
    assert "outside its folder" in message(lambda: checkpoint(tmp_path / "model", files).files("unet"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    found = checkpoint(tmp_path, {"config.json": content})
    assert message(lambda: found.config("unet")).startswith(f"{tmp_path}/unet/config.json: is not")


def test_what_is_not_a_checkpoint_is_recognised(tmp_path: Path) -> None:
    empty, single, whole = tmp_path / "empty", tmp_path / "single", tmp_path / "whole" / "inner"
    empty.mkdir()
    single.mkdir()
    save_file(tensors(), single / "v2-1.safetensors")
    checkpoint(whole, {WHOLE: tensors()})
    assert "has no model_index.json" in message(lambda: CheckpointFolder.open(empty))
    assert "v2-1.safetensors" in (text := message(lambda: CheckpointFolder.open(single))) and "to that file" in text
    assert f"set model.source={whole}" in message(lambda: CheckpointFolder.open(whole.parent))
    assert "its parent folder is one" in message(lambda: CheckpointFolder.open(whole / "unet"))


def test_components(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    index = {"_class_name": "P", "unet": ["d", "U"], "safety_checker": ["s", "C"], "vae": [None, None], "tag": True}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "vae").mkdir()
    (tmp_path / "latent_upsampler").mkdir()
    assert found.components == ["unet"]
    assert [name for name in ("unet", "vae", "text_encoder", "latent_upsampler") if found.has(name)] == [
        "unet",
        "latent_upsampler",
    ]
    assert "has no folder text_encoder" in message(lambda: found.config("text_encoder"))
    assert "has no folder text_encoder" in message(lambda: found.files("text_encoder"))
    with pytest.raises(CheckpointError, match="outside"):
        found.path("../x")


def test_identity_and_digest_follow_the_contents(tmp_path: Path) -> None:
    def again() -> CheckpointFolder:
        return CheckpointFolder.open(tmp_path)

    found = checkpoint(tmp_path, {WHOLE: tensors()})
    identity, digest = found.identity, found.digest()
    assert (again().identity, again().digest()) == (identity, digest)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    (tmp_path / "unet" / "config.json").write_text('{"a": 1}')
    assert again().identity != identity
    assert again().digest() == digest
    source = tensors()
    source["out.weight"][0, 0] += 1  # the header stays the same
    save_file(source, tmp_path / "unet" / WHOLE)
    os.utime(tmp_path / "unet" / WHOLE, (1, 1))
    assert again().digest() != digest


def test_a_replaced_file_makes_another_identity(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    identity = found.identity
    source = tensors()
    source["out.weight"][0, 0] += 1
    save_file(source, tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "unet" / WHOLE)
    assert found.identity != identity


TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"


@pytest.mark.parametrize("kind", ["link", "folder", "loop"])
@pytest.mark.parametrize("file", sorted(str(path.relative_to(TINY)) for path in TINY.rglob("*") if path.is_file()))
def test_something_else_in_the_place_of_a_file(file: str, kind: str, tmp_path: Path) -> None:
    """Each file of a checkpoint as a link to nothing, as a folder, and as a link that leads to itself."""
    path = shutil.copytree(TINY, tmp_path / "model") / file
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere" if kind == "link" else path.name)
    with pytest.raises(CheckpointError) as caught:
        CheckpointFolder.open(tmp_path / "model", source="model").identity  # noqa: B018
    said = str(caught.value)
    assert said.startswith("model: its model_index.json is" if file == "model_index.json" else f"model/{file}: ")
    reason = {"link": "link to a file that is", "folder": "is a folder and should be a file", "loop": "link"}[kind]
    assert reason in said and said.count("; ") == 1


def test_weights_that_go_between_two_looks(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model")
    found = CheckpointFolder.open(folder)
    names = found.files("unet")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae/diffusion_pytorch_model\.safetensors: is missing"):
        found.digest()
    names[0].unlink()
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.safetensors: is missing"):
        found.tensor_files("unet")
