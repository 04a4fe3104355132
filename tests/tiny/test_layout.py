"""The checkpoint in the package is the one that `diffuse.tiny.layout` describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from diffuse.schedulers import build
from diffuse.tiny import data, layout

CHECKPOINT = data.HERE / "checkpoint"


def content(path: str) -> Any:
    return json.loads((CHECKPOINT / path).read_text(encoding="utf-8"))


def test_the_configuration_files_are_those_of_the_tables() -> None:
    assert content("model_index.json") == layout.MODEL_INDEX
    assert content("scheduler/scheduler_config.json") == layout.SCHEDULER
    assert content("unet/config.json") == layout.UNET
    assert content("text_encoder/config.json") == layout.TEXT_ENCODER
    vae = content("vae/config.json")
    assert vae.pop("scaling_factor") > 0
    assert vae == layout.VAE


def test_the_tokenizer_is_written_from_its_merges(tmp_path: Path) -> None:
    folder = CHECKPOINT / "tokenizer"
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    layout.write_tokenizer(tmp_path, [(left, right) for left, right in map(str.split, lines)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in folder.iterdir()
    }


def test_the_noise_schedule_is_that_of_the_samplers() -> None:
    sampler = build.build({"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"}, layout.SCHEDULER)
    torch.testing.assert_close(
        layout.alphas_cumprod(), torch.as_tensor(sampler.alphas_cumprod).float(), atol=1e-6, rtol=1e-4
    )
