"""What `diffuse convert` writes opens in diffusers, is whole or not there, and says where it came from."""

from __future__ import annotations

import json
import os
import resource
from hashlib import sha256
from pathlib import Path
from typing import Any

import command
import diffusers
import ldm_files
import pytest
import small_checkpoints
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diffuse
from diffuse.convert import diffusers_folder
from diffuse.media.files import TEMPORARY


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoints.build(tmp_path_factory.mktemp("convert") / "sd1", "sd1")


def convert(*words: Any, cwd: Path) -> command.Done:
    return command.diffuse("convert", *words, cwd=cwd)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_names_of_other_bytes_than_text(sd: Path, tmp_path: Path) -> None:
    """Other readers take a header of UTF-8 only."""
    file = ldm_files.write(sd, tmp_path / os.fsdecode(b"caf\xe9.safetensors"), "sd1")
    tokenizer = f"model.tokenizer.source={sd}"
    for target in (os.fsdecode(b"copy\xe9"), "one.safetensors"):
        done = convert(file, target, tokenizer, cwd=tmp_path)
        assert done.status == 0, done.err
    with safe_open(tmp_path / "one.safetensors", "pt") as made:
        assert "caf?.safetensors" in made.metadata()["diffuse.source"]


def test_diffusers_opens_the_folder(sd: Path, tmp_path: Path) -> None:
    """Out of a single file, in half precision and in shards."""
    file = ldm_files.write(sd, tmp_path / "file.safetensors", "sd1")
    tokenizer = f"model.tokenizer.source={sd}"
    done = convert(file, "copy", "--precision", "float16", "--shard-size", "500KB", tokenizer, cwd=tmp_path)
    assert (done.status, done.out) == (0, "copy\n"), done.err
    copy = tmp_path / "copy"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(copy, torch_dtype=torch.float16)
    for name in ("unet", "vae", "text_encoder"):
        theirs = {key: each for key, each in getattr(pipeline, name).state_dict().items() if "position_ids" not in key}
        ours = ldm_files.component(sd, name)
        if not any(key.startswith("text_model.") for key in theirs):
            ours = {key.removeprefix("text_model."): each for key, each in ours.items()}
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key].half()) for key in ours)
    index = json.loads((copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = {path.name for path in (copy / "unet").glob("*.safetensors")}
    assert shards == set(index["weight_map"].values()) and len(shards) > 1
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for name in shards for tensor in load_file(copy / "unet" / name).values()
    )
    card = (copy / "README.md").read_text()
    assert f"| all | `{file}` | `{sha256(file.read_bytes()).hexdigest()}` |" in card
    assert f"diffuse {diffuse.__version__}, precision: float16" in card and f"| tokenizer | `{sd}` |" in card


def test_the_words_of_the_package_are_published_with_a_folder(sd: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    file = ldm_files.write(sd, tmp_path / "file.safetensors", "sd1")
    assert convert(file, "copy", cwd=tmp_path).status == 0
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "copy" / "tokenizer")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_a_file_says_where_it_came_from_and_what_it_cannot_hold(sd: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    for path in sd.rglob("*"):
        (odd / path.relative_to(sd)).parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            (odd / path.relative_to(sd)).write_bytes(path.read_bytes())
    scheduler = odd / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(settings | {"timestep_spacing": "trailing", "beta_end": 0.02}))
    done = convert(odd, "x.safetensors", "scheduler.prediction_type=v_prediction", cwd=tmp_path)
    words = f"model.tokenizer.source={odd / 'tokenizer'}"  # the small checkpoint has words of its own
    assert f"does not hold {words}, scheduler.beta_end=0.02, scheduler.timestep_spacing=trailing" in done.err, done.err
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        said = file.metadata()
    assert said["modelspec.prediction_type"] == "v" and said["modelspec.architecture"] == "stable-diffusion-v1"
    assert said["diffuse.source"].startswith(f"all={odd}@") and said["diffuse.version"] == diffuse.__version__
    scheduler.write_text(json.dumps(settings | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}))
    assert f"does not hold {words}: give" in convert(odd, "y.safetensors", cwd=tmp_path).err
    more = {"_class_name": "LCMScheduler", "_diffusers_version": "0.1", "trained_betas": [0.1], "use_beta_sigmas": 0,
            "sample_max_value": 1.0, "lower_order_final": True, "solver_order": 3}  # fmt: skip
    scheduler.write_text(json.dumps(settings | more))
    upcasts = {"vae": "force_upcast", "unet": "upcast_attention"}
    plain = {name: (odd / name / "config.json").read_text() for name in upcasts}
    for name, field in upcasts.items():
        (odd / name / "config.json").write_text(json.dumps(json.loads(plain[name]) | {field: True}))
    said = [line for line in convert(odd, "v.safetensors", cwd=tmp_path).err.splitlines() if "does not hold" in line]
    assert [line.partition("not hold ")[2].partition(": ")[0] for line in said] == [
        f"{words}, scheduler=lcm, scheduler.solver_order=3, scheduler.trained_betas=[0.1]",
        "vae.force_upcast=True, unet.upcast_attention=True, unet.sample_size=32 (of a picture that names none)",
    ]
    for name, text in plain.items():
        (odd / name / "config.json").write_text(text)
    (tmp_path / "v.safetensors").unlink()
    config = odd / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_head_dim": 4}))
    done = convert(odd, "z.safetensors", cwd=tmp_path)
    assert (done.status, done.out) == (2, "") and len(done.err.splitlines()) == 1
    assert "unet has attention_head_dim=[4, 4], and one file cannot say so" in done.err
    assert left(tmp_path) == {"odd", "x.safetensors", "y.safetensors"}


def test_a_number_that_the_precision_cannot_hold_is_refused(sd: Path, tmp_path: Path) -> None:
    """It would be an infinity. One that was none before stays what it is."""
    file = ldm_files.write(sd, tmp_path / "file.safetensors", "sd1")
    tensors, key = load_file(file), "first_stage_model.post_quant_conv.bias"
    tensors[key][:2] = torch.tensor([70_000.0, torch.inf])
    save_file(tensors, file)
    for target in ("half", "half.safetensors"):
        done = convert(file, target, "--precision", "float16", cwd=tmp_path)
        refused(done, ".bias has the number 70000, and float16 holds none above 65504; add --precision bfloat16")
    assert left(tmp_path) == {"file.safetensors"}
    assert convert(file, "brain.safetensors", "--precision", "bfloat16", cwd=tmp_path).status == 0
    assert load_file(tmp_path / "brain.safetensors")[key][:2].isfinite().tolist() == [True, False]


def refused(done: command.Done, said: str, status: int = 2) -> None:
    assert (done.status, done.out) == (status, "") and said in done.err.splitlines()[-1], done.err


def test_nothing_is_left_where_it_cannot_be_done(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = ldm_files.tensors_of(small_checkpoints.build(tmp_path / "sd2", "sd2"), "sd2")
    save_file(second, tmp_path / "sd2.safetensors")
    (tmp_path / "here").mkdir()
    before = left(tmp_path)
    refused(convert(sd, "here", cwd=tmp_path), "here: exists already and is not overwritten")
    refused(convert("sd2.safetensors", "new", cwd=tmp_path), "add scheduler.prediction_type=v_prediction or")
    refused(convert("none.ckpt", "new", cwd=tmp_path), "none.ckpt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as on a disk that is full
    try:
        for target in ("new", "new.safetensors"):
            refused(convert(sd, target, cwd=tmp_path), "File too large; nothing of it was left", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == before

    def interrupt(*_: Any) -> None:
        assert any(name.startswith(TEMPORARY) for name in left(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(diffusers_folder, "_write_tokenizer", interrupt)
    assert convert(sd, "new", cwd=tmp_path).status == 130
    assert left(tmp_path) == before

    def other(*_: Any) -> None:
        (tmp_path / "new").mkdir()

    monkeypatch.setattr(diffusers_folder, "_write_tokenizer", other)
    refused(convert(sd, "new", cwd=tmp_path), "was made by another meanwhile")
    assert left(tmp_path) == before | {"new"} and left(tmp_path / "new") == set()
