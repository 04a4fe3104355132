"""`diffuse/docs/reference.md` maps the reference's functions to lines of Python: each of them runs."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import film_peers
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
EXPORTED = {  # by the reference
    "CLIPTokenizer",
    "apply_interleaved_rotary_emb",
    "apply_split_rotary_emb",
    "auto_devices",
    "bpe_tokenizer",
    "clear_vram",
    "configure_vae_for_profile",
    "ddim_scheduler_create",
    "ddim_scheduler_step",
    "decode_bpe",
    "diagonal_gaussian_distribution",
    "dit_offloaded_forward",
    "download_component",
    "download_model",
    "encode_bpe",
    "encode_text_ltx2",
    "encode_with_gemma3",
    "filename_from_prompt",
    "flowmatch_calculate_shift",
    "flowmatch_scale_noise",
    "flowmatch_scheduler_create",
    "flowmatch_scheduler_step",
    "flowmatch_set_timesteps",
    "gemma3_config_ltx2",
    "gemma3_text_model",
    "gemma3_tokenizer",
    "img2img",
    "is_blackwell_gpu",
    "latents_to_video",
    "load_decoder_weights",
    "load_gemma3_text_encoder",
    "load_ltx2_connectors",
    "load_ltx2_transformer",
    "load_ltx2_vae",
    "load_model_component",
    "load_pipeline",
    "load_text_encoder2_weights",
    "load_text_encoder_weights",
    "load_to_gpu",
    "load_unet_sdxl_weights",
    "load_unet_weights",
    "ltx2_memory_profile",
    "ltx2_text_connectors",
    "ltx2_video_causal_conv3d",
    "ltx2_video_decoder3d",
    "ltx2_video_down_block3d",
    "ltx2_video_encoder3d",
    "ltx2_video_mid_block3d",
    "ltx2_video_resnet_block3d",
    "ltx2_video_transformer_3d_model",
    "ltx2_video_up_block3d",
    "ltx2_video_vae",
    "ltx_video_downsampler3d",
    "ltx_video_upsampler3d",
    "models2devices",
    "offload_to_cpu",
    "pack_text_embeds",
    "per_channel_rms_norm",
    "post_quant_conv",
    "preprocess_image",
    "quant_conv",
    "rope_embedder_create",
    "rope_forward",
    "rope_prepare_video_coords",
    "save_frames",
    "save_image",
    "save_video",
    "scheduler_add_noise",
    "sdxl_memory_profile",
    "sequential_cfg_forward",
    "text_encoder2_native",
    "text_encoder_native",
    "tokenize_gemma3",
    "txt2img",
    "txt2img_sd21",
    "txt2img_sdxl",
    "txt2vid_ltx2",
    "unet_native",
    "unet_native_from_torchscript",
    "unet_sdxl_native",
    "unet_sdxl_native_from_torchscript",
    "vae_decoder_native",
    "validate_resolution",
    "vocab_size",
    "vram_report",
}


def rows() -> dict[str, str]:
    """What stands in the first column of the page's tables -> the line in the second."""
    found = re.findall(r"^\| `(.+?)` \| `(.+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert len(found) == len(re.findall(r"^\| `", PAGE.read_text(), re.MULTILINE)) == len(dict(found))
    return dict(found)


def test_every_function_is_on_the_page() -> None:
    assert len(EXPORTED) == 85 and set(rows()) >= EXPORTED


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
        "ltx2": str(film_peers.tiny("2.0", tmp_path_factory).folder),
        "photo": str(photograph(folder / "photo.png")),
        "out": str(folder / "out"),
        "clips": str(folder / "clips"),
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


def test_what_the_lines_of_films_give(ran: dict[str, Any]) -> None:
    film, record = ran["film"], ran["film"].record
    assert film.frames.shape == (1, 9, 64, 96, 3) and film.paths[0].suffix == ".mp4"
    assert (record["request"]["seed"], record["request"]["negative_prompt"]) == (7, "rain")
    assert ran["video"].name == "clip.webm" and len(list(ran["pngs"].glob("frame_*.png"))) == 9
    assert ran["from_latents"].suffix == ".mp4" and ran["from_latents"].is_file()
    assert ran["streamed"].record["hardware"]["memory_profile"]["streamed"] == ["*"]
    assert ran["film_profile"].name == "cpu_only" and ran["tiles"] == (8, 5)
    assert (ran["fitting"].width, ran["fitting"].height, ran["fitting"].num_frames) == (640, 352, 33)
    assert ran["word_ids"] and isinstance(ran["words_again"], str)
    assert ran["tokens"].ids.shape == (*ran["last_state"].shape[:1], 64) and ran["count"] > max(ran["word_ids"])
    assert len(ran["film_texts"]) == 1 and ran["film_text"].video.shape[:2] == (2, 64)
    assert ran["rotation"].cosines.shape == (48, 4, 16) and ran["turned"].shape == ran["turned_split"].shape
    assert ran["velocity"].video.shape[:2] == (1, 12) and ran["velocity"].audio.shape[:2] == (1, 5)
    assert ran["film_pixels"].shape == (1, 3, 9, 64, 64) and ran["film_latents"].shape[2:] == (2, 2, 2)
    assert ran["smaller"].shape == (1, 8, 3, 4, 4) and ran["larger"].shape == (1, 4, 5, 8, 8)
    assert ran["convolved"].shape == ran["block"].shape == (1, 8, 3, 8, 8) and ran["normed"].shape == (1, 4, 3, 8, 8)


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
