"""Reports on films: strips of frames, the sound, and a page that plays them in step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from compared import film, read_table, refused
from PIL import Image

from diffuse.compare.cells import cells_in_file, cells_in_folder
from diffuse.compare.report import compare_folder

FORMATS = ("mp4", "webp", "frames")  # by ffmpeg, by Pillow, picture by picture


def page_data(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    cells: list[dict[str, Any]] = json.loads(found[1])["cells"]
    return cells


@pytest.mark.parametrize("format", FORMATS)
def test_films_of_every_kind_of_file_are_compared(format: str, tmp_path: Path) -> None:
    for steps in (4, 8):
        film(steps, tmp_path / str(steps), format)
    files = compare_folder(tmp_path)
    assert Image.open(tmp_path / "report" / "sheet.png").width > 2 * 8 * 48  # strips of the frames of both
    rows = read_table(tmp_path / "report")
    assert [row["num_inference_steps"] for row in rows] == ["4", "8"] and 10 < float(rows[0]["psnr_db"]) < 60
    has_sound = format in ("mp4", "webm", "frames")
    assert ("sound_snr_db" in rows[0]) == has_sound
    cells = page_data(files[0])
    for cell in cells:
        assert cell["video"] and cell["sound"] == has_sound and cell["moving"]["mime"] in ("video/mp4", "video/webm")
    assert (cells[0]["sound_snr"] is not None) == has_sound
    if has_sound:
        assert float(rows[0]["sound_snr_db"]) == pytest.approx(cells[0]["sound_snr"], rel=1e-4)
        assert 10 < cells[0]["sound_snr"] < 60 and cells[1]["sound_snr"] is None


def test_a_folder_of_frames_is_one_film(tmp_path: Path) -> None:
    path = film(4, tmp_path, "frames")
    (tmp_path / "job.json").unlink()
    assert [cell.path for cell in cells_in_folder(tmp_path).cells] == [path]
    for named in (path, path / "frame_00000.png"):
        (cell,) = cells_in_file(named).cells
        assert cell.path == path and cell.is_video


def test_sound_alone_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "sound"
    path = film(4, folder, "wav")
    assert "holds sound alone" in refused(path, cwd=tmp_path)
    found = cells_in_folder(folder)
    assert not found.cells and found.foreign and not found.failures
