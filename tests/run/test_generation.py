"""A generation: frames shown and saved one after the other, and numbers by the names of the tracking store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffuse.run.generation import Generation, side_by_side

RECORD = {
    "diffuse": "0",
    "request": {"prompt": "a cat", "negative_prompt": None, "seed": 4, "num_inference_steps": 1, "guidance_scale": 1.0},
    "config": {"scheduler": {"name": "ddim"}, "model": {"name": "tiny"}},
    "weights": {"source": "tiny", "sha256": "ab"},
}


def generation(count: int) -> Generation:
    """Returns images of one even grey each: 0, 1, 2 ..."""
    frames = np.broadcast_to(np.arange(count)[:, None, None, None, None], (count, 1, 8, 16, 3)).astype(np.uint8)
    images = [{"index": i, "seed": 4 + i, "pixels_sha256": "ab"} for i in range(count)]
    request = {**RECORD["request"], "width": 16, "height": 8}  # type: ignore[dict-item]
    record = {**RECORD, "request": request, "images": images}
    return Generation(
        frames, {"image": torch.zeros(count, 4, 1, 2)}, {"total_s": 1.5}, [1.0], {"peak_gib": 2.0}, [], record
    )


def test_images_are_first_frames() -> None:
    assert [np.asarray(image)[0, 0, 0] for image in generation(3).images] == [0, 1, 2]
    assert repr(generation(3)) == "<Generation: 3 pictures, 16 x 8, seeds 4 to 6, 1.5 s>"


def test_numbers_have_the_names_of_the_store() -> None:
    assert generation(1).metrics == {"time/total_s": 1.5, "memory/peak_gib": 2.0}


def test_each_file_has_its_own_record(tmp_path: Path) -> None:
    made = generation(2)
    first, second = made.save(tmp_path, "x")
    assert (first.name, second.name) == ("x.png", "x_1.png")
    assert np.asarray(Image.open(second)).max() == 1
    assert [record["image"]["index"] for record in made.records] == [0, 1]


def test_a_notebook_shows_all_of_them() -> None:
    sheet = np.asarray(Image.open(io.BytesIO(generation(5)._repr_png_())))
    assert sheet.shape == (2 * 8 + 4, 4 * 16 + 3 * 4, 3)
    assert (sheet[12:, :16] == 4).all() and (sheet[8:12] == 255).all()
    assert side_by_side(np.zeros((1, 8, 16, 3), np.uint8)).shape == (8, 16, 3)
