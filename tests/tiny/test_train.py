"""The training script goes on from the checkpoint in the package, and writes it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffuse.tiny import data, layout, train

CHECKPOINT = data.HERE / "checkpoint"


@pytest.fixture(autouse=True)
def noise_as_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in place of the objects: the font that draws them is not everywhere."""
    glyphs = np.random.default_rng(0).integers(0, 256, (len(data.objects()), data.SIDE, data.SIDE, 4), dtype=np.uint8)
    monkeypatch.setattr(data, "glyphs", lambda names: glyphs)
    torch.manual_seed(0)


def test_what_was_resumed_is_exported_to_the_bit(tmp_path: Path) -> None:
    train.resume(CHECKPOINT, tmp_path)
    train.export(tmp_path, tmp_path / "exported")
    for file in layout.WEIGHTS.values():
        before, after = load_file(CHECKPOINT / file), load_file(tmp_path / "exported" / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_step_of_training_changes_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.resume(CHECKPOINT, tmp_path)
    before = torch.load(tmp_path / "decoder.pt")["modules"]
    train.train_decoder(tmp_path, minutes=1e-9, rate=1e-3, bfloat16=False)
    after = torch.load(tmp_path / "decoder.pt")
    assert after["step"] == 1 and "loss nan" not in capsys.readouterr().out
    assert any(not torch.equal(before[key], after["modules"][key]) for key in before)
