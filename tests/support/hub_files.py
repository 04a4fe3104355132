"""A repository for the tests of the hub: the files that are needed of it, and others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.locate import download_checkpoints, locate_checkpoints
from diffuse.checkpoints.source import Source
from diffuse.errors import CheckpointError
from diffuse.schema import Download

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
}


def weights(seed: int, size: int = 1000) -> bytes:
    """Bytes in the safetensors format."""
    header = json.dumps({f"w{seed}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes((seed * 7 + i) % 251 for i in range(size))


SMALL = {
    "model_index.json": json.dumps(INDEX).encode(),
    "unet/config.json": b'{"a": 1}',
    "vae/config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "tokenizer/vocab.json": b'{"a": 0}',
    "tokenizer/merges.txt": b"#version",
    "tokenizer/tokenizer_config.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
}
PLAIN = {
    "unet/diffusion_pytorch_model.safetensors": weights(1),
    "vae/diffusion_pytorch_model.safetensors": weights(2),
    "text_encoder/model.safetensors": weights(3),
}
HALF = {
    "unet/diffusion_pytorch_model.fp16.safetensors": weights(4),
    "text_encoder/model.fp16-00001-of-00002.safetensors": weights(5),
    "text_encoder/model.fp16-00002-of-00002.safetensors": weights(6),
    "text_encoder/model.safetensors.index.fp16.json": json.dumps(
        {"weight_map": {f"w{i}": f"model.fp16-0000{i - 4}-of-00002.safetensors" for i in (5, 6)}}
    ).encode(),
}
NOT_NEEDED = {
    "README.md": b"# model",
    "v2-1.ckpt": b"pickle",
    "v2-1.safetensors": weights(9),
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.bin.index.json": b"{}",
    "unet/diffusion_flax_model.msgpack": b"flax",
    "unet/model.onnx": b"onnx",
    "unet/openvino_model.xml": b"openvino",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": weights(7),
    "feature_extractor/preprocessor_config.json": b"{}",
    "vae_decoder/model.onnx": b"onnx",
}
NAME = "owner/name"


def locate(source: str, consent: Download = Download.yes, **about: Any) -> CheckpointFolder:
    return locate_checkpoints([Source(source, **about)], consent)[0]


def download(source: str, yes: bool = False, **about: Any) -> CheckpointFolder:
    return download_checkpoints([Source(source, **about)], Download.yes if yes else Download.ask)[0]


def message(action: Callable[[], Any], kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
