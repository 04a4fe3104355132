"""The video training script: each stage makes a step, what it made is exported, and its training goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffuse.models.text_encoder.gemma_tokenizer import GemmaTokenizer
from diffuse.tiny import data, train_video, video_data, video_layout

FONT = Path("none")


@pytest.fixture(autouse=True)
def few_objects_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in place of the objects: the font that draws them is not everywhere."""
    monkeypatch.setattr(video_data, "OBJECTS", video_data.OBJECTS[:1])
    monkeypatch.setattr(video_data, "glyphs", lambda font: torch.rand(1, 4, data.SIDE, data.SIDE) * 255)
    for name, value in {"_SHADES": 1, "_BATCH": 4, "_FILM_BATCH": 1, "_SAMPLE": 4}.items():
        monkeypatch.setattr(train_video, name, value)
    torch.manual_seed(0)


def test_every_stage_makes_a_step_and_the_checkpoint_is_taken_up_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, folder, again = tmp_path / "work", tmp_path / "checkpoint", tmp_path / "again"
    work.mkdir()
    again.mkdir()
    train_video.train_vae(work, 1e-9, 1e-3, False, FONT)
    train_video.train_audio_vae(work, 1e-9, 1e-3)
    train_video.train_vocoder(work, 1e-9, 1e-3)
    train_video.train_transformer(work, 1e-9, 1e-3, False, FONT)
    assert "nan" not in capsys.readouterr().out
    train_video.export(work, folder)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 25e6
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "LTX2Pipeline"
    train_video.resume(folder, again)
    for name in ("vae", "audio_vae", "vocoder", "transformer"):
        state = torch.load(again / f"{name}.pt", weights_only=True)
        trained = torch.load(work / f"{name}.pt", weights_only=True)["mean"]
        assert state["mean"].keys() == trained.keys()
        assert all(
            torch.allclose(state["mean"][key], trained[key], atol=2e-3, rtol=2e-3)
            for key in trained
            if not key.startswith("latents_")
        )
    statistics = load_file(folder / video_layout.weights_file("vae"))["latents_std"]
    assert statistics.dtype == torch.float32 and not torch.equal(statistics, torch.ones_like(statistics))


def test_each_word_of_a_caption_is_one_token_that_comes_back(tmp_path: Path) -> None:
    video_layout.write_tokenizer(tmp_path, train_video.tokenizer().tokenizer)
    tokenizer = GemmaTokenizer.from_folder(tmp_path)
    text = "a rocket moving up on a blue background"
    tokens = tokenizer([text, "ø"], video_layout.TEXT_LENGTH)
    assert int(tokens.mask[0].sum()) == len(text.split()) + 1 and int(tokens.ids[0, -9]) == 2
    assert tokenizer.tokenizer.decode(tokens.ids[0].tolist()).strip() == text
    assert tokenizer.tokenizer.decode(tokens.ids[1].tolist()).strip() == "ø"
