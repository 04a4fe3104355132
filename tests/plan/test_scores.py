"""How good predictions were, from pictures that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffuse.cli import doctor
from diffuse.device.hardware import Hardware
from diffuse.media.metadata import png_chunks
from diffuse.plan.scores import prediction_scores


def picture(path: Path, device: tuple[float, float], host: tuple[float, float], name: str = "a card") -> None:
    """Saves a picture with the predicted and the measured GiB of the device and of main memory."""
    kinds = ("predicted", "measured")
    memory = {kind: {"peak_gib": device[i], "rss_peak_gib": host[i]} for i, kind in enumerate(kinds)}
    record: dict[str, Any] = {"hardware": {"name": name}, "memory": memory}
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_chunks(record, ""))


def test_the_median_and_the_worst_of_runs_on_this_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    assert prediction_scores() is None
    picture(outputs / "a" / "1.png", (6.0, 5.0), (1.0, 1.0))
    picture(outputs / "a" / "2.png", (6.0, 5.0), (1.0, 1.0))  # of the same run
    picture(outputs / "b" / "1.png", (0.0, 0.0), (0.98, 1.0))  # nothing was measured on the device
    picture(outputs / "c" / "1.png", (0.99, 1.0), (1.1, 1.0))
    picture(outputs / "d" / "1.png", (9.0, 1.0), (9.0, 1.0), name="another")
    (outputs / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(outputs / "plain.png")
    picture(outputs / "odd.png", ("x", 1.0), (1.0, 1.0))  # type: ignore[arg-type]
    scores = prediction_scores(hardware="a card")
    assert scores is not None
    assert scores.line() == "3 runs: device off by 10.5%, at most 20.0%; main memory off by 2.0%, at most 10.0%"
    assert doctor._scores(Hardware("cuda", name="a card")) == [("predictions", f"of memory, {scores.line()}")]
    assert doctor._scores(Hardware("cpu", name="a third")) == []
