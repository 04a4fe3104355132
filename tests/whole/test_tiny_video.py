"""The tiny video checkpoint that ships: its folder, the film it makes by default, and diffusers' film of the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import diffuse
from diffusers import LTX2Pipeline
from safetensors import safe_open

import diffuse as package
from diffuse.config.groups import SHIPPED
from diffuse.media.video import Video
from diffuse.models.text_encoder.gemma_tokenizer import GemmaTokenizer
from diffuse.tiny import train_video, video_layout

FOLDER = SHIPPED["tiny_video"]
PROMPT = "a rocket moving up on a blue background"


def test_the_folder_is_what_training_writes() -> None:
    for name, config in video_layout.CONFIGS.items():
        published = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
        published.pop("vocab_size", None)
        assert published == config, name
        shapes = {key: tuple(value.shape) for key, value in train_video.build(name).state_dict().items()}
        with safe_open(FOLDER / video_layout.weights_file(name), "pt") as file:
            keys = list(file.keys())
            kept = {key.removeprefix("model."): tuple(file.get_slice(key).get_shape()) for key in keys}
        assert kept == shapes, name
    assert json.loads((FOLDER / "model_index.json").read_text(encoding="utf-8")) == video_layout.MODEL_INDEX
    words = GemmaTokenizer.from_folder(FOLDER / "tokenizer")
    assert words.vocab_size == train_video.tokenizer().vocab_size
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 25e6


def test_a_film_with_sound_and_the_same_again(tmp_path: Path) -> None:
    done = diffuse("model=tiny_video", "num_inference_steps=2", "seed=3", "tracking=none", cwd=tmp_path)
    assert done.status == 0, done.err
    (file,) = done.paths
    assert file.name == "a_rocket_moving_up_on_a_blue_background_3.mp4"
    video = Video.open(tmp_path / file)
    assert (video.size, video.fps, sum(1 for _ in video.each_frame())) == ((64, 64), 12.0, 17)
    again = diffuse("reproduce", str(file), "tracking=none", cwd=tmp_path)
    assert again.status == 0 and "identical" in again.err, again.err
    auto = diffuse("--cfg", "job", "model=auto", f"model.source={FOLDER}", cwd=tmp_path)
    assert auto.status == 0 and "name: tiny_video" in auto.out


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_diffusers_makes_the_same_film(guidance: float) -> None:
    options = {"width": 64, "height": 64, "num_frames": 17, "num_inference_steps": 4, "guidance_scale": guidance}
    made = package.txt2vid(PROMPT, model="tiny_video", seed=1, hardware="cpu", progress=False, **options)
    pipeline = LTX2Pipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT,
        **options,
        frame_rate=12.0,
        audio_guidance_scale=guidance,
        modality_scale=1.0,
        audio_modality_scale=1.0,
        stg_scale=0.0,
        audio_stg_scale=0.0,
        guidance_rescale=0.0,
        audio_guidance_rescale=0.0,
        use_cross_timestep=False,  # as in LTX-2.0
        max_sequence_length=video_layout.TEXT_LENGTH,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    )
    assert np.abs(made.frames[0].astype(int) - (theirs.frames[0] * 255).round()).max() <= 1
    assert made.sound is not None and np.abs(made.sound[0] - theirs.audio[0].numpy()).max() <= 1e-3
