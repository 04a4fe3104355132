"""`diffuse/docs/reference.md` maps the reference's functions to lines of Python: each of them runs."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import ldm_files
import numpy as np
import oracle
import oracle_sdxl
import pytest
import small_checkpoints
import torch
from picture_parity import photograph
from PIL import Image

import diffuse
from diffuse.run import open as opening

PAGE = Path(diffuse.__file__).parent / "docs" / "reference.md"
SMALL: dict[str, Any] = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
EXPORTED = {  # of what the reference exports, that which has to do with pictures
    "auto_devices",
    "clear_vram",
    "CLIPTokenizer",
    "configure_vae_for_profile",
    "ddim_scheduler_create",
    "ddim_scheduler_step",
    "diagonal_gaussian_distribution",
    "download_component",
    "download_model",
    "filename_from_prompt",
    "flowmatch_calculate_shift",
    "flowmatch_scale_noise",
    "flowmatch_scheduler_create",
    "flowmatch_scheduler_step",
    "flowmatch_set_timesteps",
    "img2img",
    "is_blackwell_gpu",
    "load_decoder_weights",
    "load_model_component",
    "load_pipeline",
    "load_text_encoder_weights",
    "load_to_gpu",
    "load_unet_weights",
    "models2devices",
    "offload_to_cpu",
    "post_quant_conv",
    "preprocess_image",
    "quant_conv",
    "save_image",
    "scheduler_add_noise",
    "sdxl_memory_profile",
    "sequential_cfg_forward",
    "text_encoder_native",
    "text_encoder2_native",
    "unet_sdxl_native",
    "load_text_encoder2_weights",
    "load_unet_sdxl_weights",
    "txt2img",
    "txt2img_sd21",
    "txt2img_sdxl",
    "unet_native_from_torchscript",
    "unet_sdxl_native_from_torchscript",
    "unet_native",
    "vae_decoder_native",
    "vram_report",
}


def rows() -> dict[str, str]:
    """What stands in the first column of the page's tables -> the line in the second."""
    found = re.findall(r"^\| `(.+?)` \| `(.+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert len(found) == len(re.findall(r"^\| `", PAGE.read_text(), re.MULTILINE)) == len(dict(found))
    return dict(found)


def test_every_function_of_pictures_is_on_the_page() -> None:
    assert set(rows()) >= EXPORTED


def exported(folder: Path, family: str) -> Path:
    """A checkpoint, with its U-Net as TorchScript too."""
    small_checkpoints.build(folder, family)
    unet = {f"unet.{key}": tensor for key, tensor in ldm_files.component(folder, "unet").items()}
    small_checkpoints.export(unet, folder / "unet.pt")
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names of the page, after its lines in order; `ERRORS` has what failed."""
    folder = tmp_path_factory.mktemp("reference")
    names: dict[str, Any] = {}
    prelude = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert prelude
    exec(prelude[1], names)
    names |= {
        "sd21": str(oracle.build(folder / "sd21", oracle.Variant(**SMALL))),
        "sdxl": str(oracle_sdxl.build(folder / "sdxl", oracle_sdxl.Variant())),
        "exported": str(exported(folder / "exported", "sd2")),
        "exported_xl": str(exported(folder / "exported_xl", "sdxl")),
        "photo": str(photograph(folder / "photo.png")),
        "out": str(folder / "out"),
        "ERRORS": {},
    }
    opening._pipelines.clear()
    with warnings.catch_warnings(), torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the tracking store goes
        for function, line in rows().items():
            try:
                exec(line, names)
            except Exception as error:
                names["ERRORS"][function] = repr(error)
    return names


@pytest.mark.parametrize("function", rows())
def test_lines(function: str, ran: dict[str, Any]) -> None:
    assert function not in ran["ERRORS"], ran["ERRORS"][function]


def test_what_the_lines_give(ran: dict[str, Any]) -> None:
    assert ran["made"].record["request"]["timesteps"] == [900, 400]
    assert Image.open(ran["made"].paths[0]).size == ran["made"].images[0].size
    assert ran["path"].name == "output.png"
    assert ran["name"] == "A_beautiful_sunset_over_the_mountains_7"
    assert ran["pixels"].shape == (64, 64, 3)
    assert ran["made_xl"].record["hardware"]["memory_profile"]["name"] == "unet_gpu"
    assert set(ran["devices"]) == {"unet", "vae", "text_encoder"} == set(ran["dtypes"])
    assert ran["decoded"].shape[2:] == (ran["made"].frames.shape[2:4])
    assert (
        np.abs(ran["decoded"].clamp(-1, 1).permute(0, 2, 3, 1).numpy() * 127.5 + 127.5 - ran["made"].frames[:, 0]).max()
        < 2
    )
    assert ran["states"].shape[:2] == ran["ids"].shape and ran["noise"].shape[2:] == (8, 8)


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PAGE.with_name("python.md")).read_text(), re.DOTALL)
    quick: dict[str, Any] = {"num_inference_steps": 2, "tracking": "none", "overrides": ["output.dir=out"]}
    for name in ("txt2img", "img2img", "inpaint"):
        monkeypatch.setattr(diffuse, name, partial(getattr(diffuse, name), **quick))
    load = partial(diffuse.load_pipeline, num_inference_steps=2)
    monkeypatch.setattr(diffuse, "load_pipeline", lambda model, **fields: load("tiny", **fields))
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "photo.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    exec(code, {})
    assert [len(list((tmp_path / folder).iterdir())) for folder in ("pictures", "out")] == [4, 1]
