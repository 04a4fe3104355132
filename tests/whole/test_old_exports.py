"""The same weights make the same pixels to the bit: as a folder, a file, pickles, exports apart, and converted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import command
import ldm_files
import numpy as np
import picture_parity as parity
import pytest
import small_checkpoints
import torch
import torch_archives
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from diffuse.config.request import draft_requests
from diffuse.convert.arguments import parse_convert_arguments
from diffuse.convert.checkpoint_content import CheckpointContent, open_content
from diffuse.convert.convert import convert as convert_checkpoint
from diffuse.run.model_auto import compose_model
from diffuse.run.run import generate

VELOCITY = "scheduler.prediction_type=v_prediction"  # which neither a pickle nor its name says


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each family, and beside it the same weights in a pickle, as `torch.save` writes them today."""
    place = tmp_path_factory.mktemp("exports")
    folders = {}
    for family, layout in small_checkpoints.FAMILIES.items():
        folders[family] = small_checkpoints.build(place / family, family)
        tensors = ldm_files.tensors_of(folders[family], layout)
        torch.save({"state_dict": tensors, "global_step": 1}, place / f"{family}.ckpt")
    return folders


def words(folder: Path) -> list[str]:
    """The overrides for the tokenizers of the folder, of which a file has none, and the prediction of SD 2.x."""
    found = [f"model.{each.name}.source={each}" for each in folder.glob("tokenizer*")]
    return [*found, VELOCITY] if folder.name == "sd2" else found


def convert(source: Path, target: Path, *overrides: Any) -> Path:
    done = command.diffuse("convert", source, target, *overrides, cwd=target.parent)
    assert (done.status, done.out.strip()) == (0, str(target)), done.err
    return target


@cache
def content_of(source: Path, *overrides: str) -> CheckpointContent:
    return open_content(compose_model(["model=auto", f"model.source={source}", *overrides]), None)


def assert_same_weights(folder: Path, source: Path, *overrides: str) -> None:
    """Every component has the same architecture and the same bits."""
    ours, theirs = content_of(source, *overrides), content_of(folder)
    assert ours.index.get("requires_aesthetics_score") == theirs.index.get("requires_aesthetics_score")
    for field in ("prediction_type", "beta_start", "beta_schedule", "steps_offset"):
        assert ours.configs["scheduler"][field] == theirs.configs["scheduler"][field]
    for name, tensors in theirs.tensors.items():
        found = {tensor.key: tensor for tensor in ours.tensors[name]}
        assert found.keys() == {tensor.key for tensor in tensors}
        for tensor in tensors:
            assert torch.equal(found[tensor.key].read(), tensor.read()), tensor.key


@pytest.mark.parametrize("family", small_checkpoints.FAMILIES)
def test_a_pickle_and_converted_copies_of_it(family: str, made: dict[str, Path], tmp_path: Path) -> None:
    folder = made[family]
    pickle = folder.with_suffix(".ckpt")
    copy = convert(pickle, tmp_path / "copy", *words(folder))
    file = convert(copy, tmp_path / "file.safetensors")
    tokenizers = [each for each in words(folder) if each != VELOCITY]
    assert_same_weights(folder, file, *tokenizers)
    back = load_file(file)
    for key, tensor in ldm_files.tensors_of(folder, small_checkpoints.FAMILIES[family]).items():
        if key in back:
            assert torch.equal(back[key], tensor), key
        else:  # what nothing needs
            assert key.startswith(("betas", "model_ema.")) or key.endswith(("_ids", "logit_scale", "text_projection"))


def request(folder: Path, family: str, place: Path) -> DictConfig:
    """A request of one step."""
    words = [f"model.source={folder}", "model=auto", "hardware=cpu", "prompt=a cat", "seed=1", "num_inference_steps=1"]
    if family in ("inpainting", "refiner"):
        words += [f"input_image={parity.photograph(place / 'photograph.png', 32, 32)}", "strength=1.0"]
    words += [f"mask_image={parity.stencil(place / 'mask.png', 32, 32)}"] if family == "inpainting" else []
    return compose_model([*words, *([] if family == "refiner" else ["width=32", "height=32"])])


def pixels(cfg: DictConfig, source: Path, *overrides: str) -> bytes:
    """The pixels that the request makes of another source, in this process."""
    cfg = cfg.copy()
    for override in (f"model.source={source}", *overrides):
        OmegaConf.update(cfg, *override.split("=", 1))
    (made,) = generate(cfg, draft_requests(cfg))
    return made.frames.tobytes()


@pytest.mark.parametrize("family", small_checkpoints.FAMILIES)
def test_every_form_makes_the_same_pixels(family: str, made: dict[str, Path], tmp_path: Path) -> None:
    """A folder, one file, components apart in files, TorchScript archives, a pickle, and a converted copy."""
    folder, pickle = made[family], made[family].with_suffix(".ckpt")
    cfg = request(folder, family, tmp_path)
    velocity = {"modelspec.prediction_type": "v"} if family == "sd2" else {}
    file = ldm_files.write(folder, tmp_path / "file.safetensors", small_checkpoints.FAMILIES[family], velocity)
    tokenizers = [each for each in words(folder) if each != VELOCITY]
    archives = small_checkpoints.exports(folder, tmp_path / "exports", xl=family in ("sdxl", "refiner"))
    apart = []
    for name in small_checkpoints.configs(family):
        if (weights := ldm_files.component(folder, name) if (folder / name).is_dir() else {}) and name != "scheduler":
            save_file(weights, tmp_path / f"{name}.safetensors")
            apart.append(f"model.{name}.source={tmp_path / name}.safetensors")
    arguments = parse_convert_arguments([str(file), str(tmp_path / "copy"), *tokenizers])
    copy = convert_checkpoint(arguments, compose_model(arguments.composed))
    expected = pixels(cfg, folder)
    assert np.frombuffer(expected, np.uint8).std() > 1
    forms = {
        "file": pixels(cfg, file, *tokenizers),
        "pickle": pixels(cfg, pickle, *words(folder)),
        "apart": pixels(cfg, folder, *apart),
        "archives": pixels(cfg, folder, *(f"{name}={each}" for name, each in archives.items())),
        "copy": pixels(cfg, copy),
    }
    assert len(apart) == len(archives) >= 3
    assert [form for form, made in forms.items() if made != expected] == []


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_exported_components(family: str, made: dict[str, Path], tmp_path: Path) -> None:
    """TorchScript archives of the U-Net, the decoder and the text encoders; the encoder of pictures is the folder's."""
    folder = made[family]
    files = small_checkpoints.exports(folder, tmp_path / "exports", xl=family == "sdxl")
    overrides = [f"{name}={file}" for name, file in files.items()]
    assert_same_weights(folder, folder, *overrides)
    assert any(
        "is a decoder alone; the rest of the autoencoder is that of" in each for each in notes(folder, overrides)
    )


def notes(source: Path, overrides: list[str]) -> list[str]:
    return list(content_of(source, *overrides).checkpoint.notes)


def test_a_folder_of_pickles(made: dict[str, Path], tmp_path: Path) -> None:
    """As diffusers wrote them before safetensors; a component may also be such a file by itself."""
    folder = made["sd1"]
    old = tmp_path / "old"
    for file in folder.rglob("*"):
        target = old / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            name = "pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"
            legacy = {"_use_new_zipfile_serialization": file.parent.name != "unet"}
            torch.save(load_file(file), target.with_name(name), **legacy)
        elif file.is_file():
            target.write_bytes(file.read_bytes())
    assert_same_weights(folder, old)
    assert_same_weights(folder, folder, f"model.unet.source={old / 'unet' / 'diffusion_pytorch_model.bin'}")
    (note,) = content_of(old).checkpoint.notes
    assert note == f"{old}: the weights of text_encoder, unet, vae are pickles, of which nothing was run"


def test_bad_files_are_refused_in_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    folder, out = made["sd2"], tmp_path / "out"
    pickle = folder.with_suffix(".ckpt")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "cut.ckpt").write_bytes(pickle.read_bytes()[:-5000])
    (tmp_path / "text.pt").write_text("a text that is named as a file of weights")
    for name, said in (("empty.ckpt", "the file is empty"), ("cut.ckpt", "cut short"), ("text.pt", "no weights")):
        parity.refused(parity.run(tmp_path / name, out, model="auto"), said, out)
    for name, content in list(torch_archives.calling_pickles())[:1]:
        hostile = torch_archives.with_pickle(tmp_path, content)
        parity.refused(parity.run(hostile, out, model="auto"), f"asks for {name}", out)
        apart = {"model": "sd21", "model.unet.source": hostile}
        parity.refused(parity.run(folder, out, **apart), f"asks for {name}", out)
    assert not (tmp_path / torch_archives.MARK).exists()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for component, file in (("unet", vae), ("vae", unet), ("text_encoder", vae)):
        done = parity.run(folder, out, model="auto", **{f"model.{component}.source": file})
        parity.refused(done, "it may be of another kind" if component != "text_encoder" else "holds no", out)
    frozen = small_checkpoints.exports(folder, tmp_path / "exports")["model.vae.source"]
    done = parity.run(frozen, out, model="auto")
    parity.refused(done, "is no checkpoint", out)
