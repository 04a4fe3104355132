"""`model=auto`: the checkpoint says what it is, and what then runs is what the family's own option would run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ldm_files
import numpy as np
import oracle
import oracle_sdxl
import picture_parity
import pytest
import small_checkpoints
from command import diffuse
from hub_server import HubServer, Repository
from picture_parity import PROMPT, STEPS, assert_same

import diffuse as package
from diffuse.config.compose import compose_config
from diffuse.config.groups import group_options, load_group
from diffuse.errors import CheckpointError, ConfigError
from diffuse.media.load import read_record
from diffuse.run import model_auto
from diffuse.sweep.auto_models import resolve_swept_models

SMALL: dict[str, Any] = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
EPSILON = {"prediction_type": "epsilon", "upcast_attention": False, **SMALL}
SD = {"_class_name": "StableDiffusionPipeline"}
VARIANTS = {
    "sd15": oracle.Variant(
        **EPSILON, linear_projection=False, hidden_act="quick_gelu", pad_token=oracle.END, position_ids=True
    ),
    "sd2-base": oracle.Variant(**EPSILON),
    "sd21": oracle.Variant(**SMALL),
    "sdxl": oracle_sdxl.Variant(),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pictures_agree_with_diffusers(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    room: Any = oracle_sdxl if isinstance(variant, oracle_sdxl.Variant) else oracle
    folder = room.build(tmp_path / "a checkpoint, [1]", variant)
    option = "sdxl" if name == "sdxl" else "sd21"
    made = picture_parity.made(folder, tmp_path / "auto", model="auto", **{"output.name": "x"})
    assert_same(made, room.picture(folder, prompt=PROMPT, num_inference_steps=STEPS, guidance_scale=7.5))
    recorded = read_record(tmp_path / "auto" / "x.png")
    assert recorded["config"]["model"]["name"] == option
    assert f"model={option}" in recorded["overrides"] and "model=auto" not in recorded["overrides"]
    assert recorded["config"]["scheduler"]["name"] == ("euler" if option == "sdxl" else "ddim")
    threads = {"overrides": ["hardware.threads=1"]}  # as the command above, since sums depend on them
    options = {"seed": 0, "num_inference_steps": STEPS, "hardware": "cpu", "progress": False}
    same = package.txt2img(PROMPT, model=folder, **options, **threads)
    assert np.array_equal(same.frames[:, 0], made)


def index(folder: Path, **entries: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(
    ("entries", "option"),
    [
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "sd21"),
        ({"_class_name": "StableDiffusionInpaintPipelineLegacy"}, "sd21"),
        ({"_class_name": "LatentConsistencyModelPipeline"}, "lcm"),
        ({"_class_name": "LatentConsistencyModelImg2ImgPipeline"}, "lcm"),
        ({"_class_name": "StableDiffusionXLInpaintPipeline"}, "sdxl"),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}, "sdxl_refiner"),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": False}, "sdxl"),
    ],
)
def test_families(entries: dict[str, Any], option: str, tmp_path: Path) -> None:
    folder = index(tmp_path / "c", **entries)
    auto = model_auto.compose_model(["model=auto", f"model.source={folder}", "prompt=x"])
    named = compose_config([f"model={option}", f"model.source={folder}", "prompt=x"])
    assert (auto.model, auto.scheduler) == (named.model, named.scheduler)
    assert auto.model._target_ and auto.model.revision is None


def test_it_stands_for_options_that_exist() -> None:
    named = {*model_auto._FAMILIES.values(), *model_auto._REFINERS.values()}
    assert named <= set(load_group("model"))
    assert "auto" in group_options("model") and "auto" not in load_group("model")


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model=auto: .*add model\.source=FOLDER"):
        model_auto.compose_model(["model=auto"])
    with pytest.raises(CheckpointError, match="is of the family FluxPipeline, which is not implemented"):
        model_auto.resolve_model(["model=auto", f"model.source={index(tmp_path / 'f', _class_name='FluxPipeline')}"])
    with pytest.raises(CheckpointError, match="has no model_index"):
        model_auto.resolve_model(["model=auto", f"model.source={tmp_path}"])
    done = diffuse("model=auto", "model.source=/nowhere/x", "prompt=x", cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert model_auto.resolve_model(["model=auto", f"model.source='{index(tmp_path / 'g', **SD)}'"])[0] == "model=sd21"


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("StableDiffusionInstructPix2PixPipeline", "changes a picture as an instruction says"),
        ("StableDiffusionXLInstructPix2PixPipeline", "changes a picture as an instruction says"),
        ("StableDiffusionDepth2ImgPipeline", "starts from a picture and a map of its depth"),
        ("StableDiffusionUpscalePipeline", "enlarges a picture"),
        ("StableDiffusionLatentUpscalePipeline", "enlarges latents"),
        ("StableDiffusionImageVariationPipeline", "varies a picture"),
        ("StableUnCLIPImg2ImgPipeline", "embedding of a picture"),
        ("StableDiffusionControlNetPipeline", "through a ControlNet"),
        ("StableDiffusionXLAdapterPipeline", "through an adapter"),
        ("OnnxStableDiffusionPipeline", "weights for ONNX Runtime"),
        ("TextToVideoSDPipeline", "makes videos"),
    ],
)
def test_others_are_named_for_what_they_are(name: str, does: str, tmp_path: Path) -> None:
    said = f"is of the family {name}, which .*{does}.*; that is not implemented; these are: "
    with pytest.raises(CheckpointError, match=said):
        model_auto.resolve_model(["model=auto", f"model.source={index(tmp_path / 'x', _class_name=name)}"])


def test_a_latent_consistency_model_runs_as_one(tmp_path: Path) -> None:
    """With its own sampler, unless another is chosen, by the command or by an experiment."""
    folder = index(tmp_path / "c", _class_name="LatentConsistencyModelPipeline")
    given = ["model=auto", f"model.source={folder}", "prompt=x"]
    auto = model_auto.compose_model(given)
    assert (auto.scheduler.name, auto.model.source, auto.model.revision) == ("lcm", str(folder), None)
    assert auto.model.request_defaults.num_inference_steps == 4
    assert model_auto.compose_model([*given, "scheduler=ddim"]).scheduler.name == "ddim"


def test_of_a_repository_only_the_small_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model_index.json": json.dumps(SD).encode(), "unet/config.json": b"{}"}
    monkeypatch.chdir(tmp_path)
    with HubServer({"an/owner": Repository(files)}) as hub:
        hub.is_the_hub(monkeypatch, tmp_path / "hub")
        assert model_auto.resolve_model(["model=auto", "model.source=an/owner"])[0] == "model=sd21"
        assert hub.fetched() == ["model_index.json"]
        hub.log.clear()
        assert model_auto.resolve_model(["model=auto", "model.source=an/owner"])[0] == "model=sd21"
        assert hub.log == []
        with pytest.raises(CheckpointError, match="no/such"):
            model_auto.resolve_model(["model=auto", "model.source=no/such"])


def test_a_single_file_is_read_for_what_it_is_where_no_model_is_chosen(tmp_path: Path) -> None:
    folder = small_checkpoints.build(tmp_path / "folder", "sdxl")
    file = ldm_files.write(folder, tmp_path / "a file.safetensors", "sdxl")
    assert model_auto.compose_model([f"model.source={file}", "prompt=x"]).model.name == "sdxl"
    swept = resolve_swept_models([f"model.source={file}", "seed=1,2", "prompt=x"])
    assert swept[-1] == "model=sdxl"
    assert model_auto.compose_model([f"model.source={folder}"]).model.name == "tiny"
    assert model_auto.compose_model(["model=sd15", f"model.source={file}", "prompt=x"]).model.name == "sd15"
    assert model_auto.compose_model(["experiment=tune_guidance", f"model.source={file}"]).model.name == "tiny"
    assert model_auto.compose_model(["experiment=seeds_by_steps", f"model.source={file}"]).model.name == "sdxl"
    mixed = [f"model.source={folder},{file}", "prompt=x"]
    assert resolve_swept_models(mixed) == mixed  # neither is taken for what the other is
