"""The layout that training writes is that of the checkpoint that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from diffuse.config.groups import TINY
from diffuse.models.text_encoder.clip import CLIPTextConfig, CLIPTextModel
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffuse.tiny import layout

PARTS = {
    "vae": (AutoencoderKL, AutoencoderKLConfig, layout.VAE),
    "unet": (UNet2DConditionModel, UNet2DConditionConfig, layout.UNET),
    "text_encoder": (CLIPTextModel, CLIPTextConfig, layout.TEXT_ENCODER),
}


def published(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((TINY / path).read_text(encoding="utf-8"))
    return content


def test_the_configuration_is_the_shipped_one() -> None:
    vae = published("vae/config.json")
    assert {key: value for key, value in vae.items() if key != "scaling_factor"} == layout.VAE
    for path, expected in (
        ("unet/config.json", layout.UNET),
        ("text_encoder/config.json", layout.TEXT_ENCODER),
        ("scheduler/scheduler_config.json", layout.SCHEDULER),
        ("model_index.json", layout.MODEL_INDEX),
    ):
        assert published(path) == expected, path


def test_the_checkpoint_is_written_as_it_ships(tmp_path: Path) -> None:
    modules = {name: model(layout.build_config(config, entries)) for name, (model, config, entries) in PARTS.items()}
    rest = nn.ModuleDict({name: modules[name] for name in ("unet", "text_encoder")})
    scaling_factor = published("vae/config.json")["scaling_factor"]
    layout.write_tiny_checkpoint(tmp_path, TINY / "tokenizer", modules["vae"], rest, scaling_factor)
    for path in TINY.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".txt"):
            assert (tmp_path / path.relative_to(TINY)).read_bytes() == path.read_bytes(), path.name
    for file in layout.WEIGHTS.values():
        shapes, expected = (
            {key: (value.shape, value.dtype) for key, value in load_file(folder / file).items()}
            for folder in (tmp_path, TINY)
        )
        assert shapes == expected, file


@pytest.mark.parametrize("timestep", [0, 400])
def test_the_noise_schedule_ends_in_pure_noise(timestep: int) -> None:
    alphas = layout.alphas_cumprod()
    assert alphas.shape == (1000,) and alphas[-1] == 0 and alphas[timestep] > alphas[timestep + 1]
