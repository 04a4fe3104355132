"""A checkpoint in a single file makes the pictures of the same weights in a folder, to the bit, and diffusers' own."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import command
import ldm_files
import numpy as np
import oracle
import oracle_sdxl
import picture_parity as parity
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from diffuse.config.groups import SHIPPED
from diffuse.media.load import read_record

SD = {"channels": (64, 64, 64, 64), "groups": (32, 32), "vae_channels": (32, 32, 32, 32), "text_width": 128}
XL = {
    "channels": (64, 64, 128),
    "heads": (1, 1, 2),
    "groups": (32, 32),
    "vae_channels": (32, 32, 32, 32),
    "size_dim": 256,
    "first": (128, 3),
    "second": (256, 3),  # diffusers tells the two apart by their widths
    "projection": 256,
}
VELOCITY = {"modelspec.prediction_type": "v"}
FIRST = {"prediction_type": "epsilon", "heads": 8, "linear_projection": False, "upcast_attention": False}
FIRST |= {"hidden_act": "quick_gelu", "pad_token": oracle.END}
CASES: dict[str, tuple[str, Any, dict[str, str], type[Any]]] = {
    "sd1": ("sd1", oracle.Variant(**SD, **FIRST), {}, StableDiffusionPipeline),
    "sd2": ("sd2", oracle.Variant(**SD, heads=1), VELOCITY, StableDiffusionPipeline),
    "inpainting": ("sd1", oracle.Variant(**SD, **FIRST, inpaints=True), {}, StableDiffusionPipeline),
    "sdxl": ("sdxl", oracle_sdxl.Variant(**XL), {}, StableDiffusionXLPipeline),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The folder and the file of each case."""
    place = tmp_path_factory.mktemp("single")
    result = {}
    for name, (family, variant, metadata, _) in CASES.items():
        build = oracle_sdxl.build if family == "sdxl" else oracle.build
        folder = build(place / name, variant)
        result[name] = folder, ldm_files.write(folder, place / f"{name}.safetensors", family, metadata)
    return result


def words(folder: Path) -> dict[str, Any]:
    """The tokenizers of the folder: the vocabulary that single files are read with is the published one."""
    return {f"model.{each}.source": folder for each in ("tokenizer", "tokenizer_2") if (folder / each).is_dir()}


def request(name: str, place: Path) -> dict[str, Any]:
    """A picture of 64 x 64."""
    size = {"width": 64, "height": 64}
    if name != "inpainting":
        return size
    return {
        **size,
        "input_image": parity.photograph(place / "photograph.png"),
        "mask_image": parity.stencil(place / "mask.png"),
        "strength": 1.0,
    }


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_the_folder_and_of_diffusers(
    name: str, made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made[name]
    options = {**request(name, tmp_path), "model": "auto"}
    ours = parity.made(file, tmp_path / "file", **options, **words(folder))
    assert np.array_equal(ours, parity.made(folder, tmp_path / "folder", **options))

    if name == "inpainting":  # its pictures from a folder are compared elsewhere
        return
    theirs = CASES[name][3].from_single_file(str(file), config=str(folder), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(0)
    images = theirs(
        prompt=parity.PROMPT,
        num_inference_steps=parity.STEPS,
        guidance_scale=7.5,
        width=64,
        height=64,
        generator=generator,
    ).images
    parity.assert_same(ours, np.stack([np.asarray(image) for image in images]))


def test_the_record_names_the_file_and_makes_it_again(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made["sd2"]
    done = parity.run(file, tmp_path / "out", model="auto", width=64, height=64, **words(folder))
    (path,) = done.paths
    weights = read_record(path)["weights"]
    assert weights["source"] == str(file) and weights["sha256"] == sha256(file.read_bytes()).hexdigest()
    again = command.diffuse("reproduce", path, cwd=tmp_path)
    assert again.status == 0, again.err


def refuse(file: Path, out: Path, said: str, **options: Any) -> None:
    parity.refused(parity.run(file, out, **{"model": "auto", **options}), said, out)


def test_files_that_are_no_checkpoint_are_refused_in_one_line(
    made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made["sd2"]
    out = tmp_path / "out"
    empty, text, cut = tmp_path / "empty.safetensors", tmp_path / "text.safetensors", tmp_path / "cut.safetensors"
    empty.write_bytes(b"")
    text.write_text("a text that is named as a file of weights")
    cut.write_bytes(file.read_bytes()[:-100])
    refuse(empty, out, "the file is empty")
    refuse(text, out, "is not a readable safetensors file")
    refuse(cut, out, "cut short")
    refuse(folder / "vae" / "diffusion_pytorch_model.safetensors", out, "is an autoencoder alone")
    refuse(folder / "unet" / "diffusion_pytorch_model.safetensors", out, "is a U-Net alone")
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(2, 2)}, lora)
    refuse(lora, out, "is a LoRA and no checkpoint")
    with_more = tmp_path / "more.safetensors"
    save_file(load_file(file) | {"something.else": torch.zeros(2)}, with_more, metadata=VELOCITY)
    refuse(with_more, out, "has the tensor something.else")
    fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    attention = "first_stage_model.decoder.mid.attn_1.q.weight"
    for key, change in ((fused, lambda w: torch.cat((w, w[:1]))), (attention, lambda w: w.expand(-1, -1, 3, 3))):
        odd = tmp_path / "odd.safetensors"
        save_file(load_file(file) | {key: change(load_file(file)[key]).contiguous()}, odd, metadata=VELOCITY)
        refuse(odd, out, "and should be", **words(folder))
    evil = tmp_path / "model.ckpt"
    evil.write_bytes(b"\x80\x02cposix\nsystem\nU\x04true\x85R.")
    refuse(evil, out, "asks for posix.system, which no weights need")
    text.rename(tmp_path / "text.txt")
    refuse(tmp_path / "text.txt", out, "is no file of weights")
    refuse(folder, out, "has no U-Net", model="sd21", **{"model.unet.source": lora})
    for source in (file, folder):
        refuse(source, out, "has a unet and no transformer: it is of another family; choose model=auto", model="ltx2")
    refuse(SHIPPED["tiny_video"], out, "has a transformer and no unet: it is of another family", model="sd15")


def test_what_a_file_lacks_or_does_not_say_is_asked_for(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made["sd2"]
    out = tmp_path / "out"
    silent, bare = tmp_path / "silent.safetensors", tmp_path / "bare.safetensors"
    tensors = load_file(file)
    save_file(tensors, silent)
    refuse(silent, out, "scheduler.prediction_type=v_prediction", **words(folder))
    options = {**request("sd2", tmp_path), "model": "auto", **words(folder)}
    told = parity.made(silent, tmp_path / "told", **options, **{"scheduler.prediction_type": "v_prediction"})
    assert np.array_equal(told, parity.made(file, tmp_path / "whole", **options))
    sizes = []
    for each, said in ((file, {}), (silent, {"scheduler.prediction_type": "v_prediction"})):
        asked = [f"{name}={value}" for name, value in {"model.source": each, **words(folder), **said}.items()]
        planned = command.diffuse("plan", "model=auto", *asked, "prompt=x", "hardware=cpu", cwd=tmp_path)
        assert planned.status == 0, planned.err
        sizes += re.findall(r"(\d+ x \d+), ", planned.out)
    assert len(sizes) == 2 and sizes[0] == sizes[1]

    save_file({key: each for key, each in tensors.items() if not key.startswith("first_stage")}, bare, VELOCITY)
    refuse(bare, out, "model.vae.source", **words(folder))
    completed = parity.made(bare, tmp_path / "completed", **options, **{"model.vae.source": folder})
    assert np.array_equal(completed, told)
