"""What is read of files, folders and jobs, and what is left out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from compared import job, pixels, record, save, sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuse.compare.cells import build_cell, cells_in_file, cells_in_folder
from diffuse.compare.command import cell_command
from diffuse.compare.report import compare_folder
from diffuse.errors import DiffuseError
from diffuse.media.save import save_media


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_pictures_of_a_folder_are_cells(format: str, tmp_path: Path) -> None:
    save(tmp_path / "deep" / "down", 7, 20, format=format)
    (cell,) = cells_in_folder(tmp_path).cells
    assert (cell.config["seed"], cell.config["num_inference_steps"], cell.config["scheduler"]) == (7, 20, "ddim")
    assert cell.seconds == pytest.approx(2.0)  # without loading
    assert not [key for key in cell.config if key.startswith(("output", "tracking")) or key.endswith("_target_")]


def test_the_seed_is_the_pictures_own_and_the_time_its_share(tmp_path: Path) -> None:
    about = record(40, 8, seconds=3.0)
    about["config"]["num_images"] = about["request"]["num_images"] = 3
    about["image"]["seed"] = 42
    cell = build_cell(tmp_path / "x.png", about)
    assert (cell.config["seed"], cell.seconds) == (42, 1.0)
    # The three images are in no override, so the command must ask for one.
    assert cell_command(cell).endswith("seed=42 num_inference_steps=8 scheduler=ddim num_images=1")
    about["overrides"].append("num_images=3")
    assert "num_images" not in cell_command(build_cell(tmp_path / "x.png", about))


def test_jobs_are_read_from_job_json_and_failures_told(tmp_path: Path) -> None:
    path = save(tmp_path / "1", 1, 4)
    about = record(2, 8)  # what job.json says goes before what is in the file
    job(tmp_path / "1", path, about, run_id="abc")
    job(tmp_path / "2", None, record(3, 8))
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "job.json").write_text("{ not whole")
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "job.json").write_text('["of another shape"]')
    (tmp_path / "sweep.json").write_text('{"name": "seeds by steps"}')

    found = cells_in_folder(tmp_path)
    assert found.title == "seeds by steps"
    (cell,) = found.cells
    assert (cell.path, cell.config["seed"], cell.run_id) == (path, 2, "abc")
    assert [failure.error for failure in found.failures if failure.overrides] == ["RunError: the disk is full"]
    assert cells_in_file(path).cells[0].run_id == "abc"


def test_a_job_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    save(tmp_path, 1, 4, name="outside")
    job(tmp_path / "job", Path("..", "outside.png"), record(1, 4), media=[{"file": "../outside.png"}])
    assert cells_in_folder(tmp_path / "job").cells == []


def test_strangers_and_reports_are_left_out(tmp_path: Path) -> None:
    sweep(tmp_path, 2, (4, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "text.png").write_text("no picture")
    compare_folder(tmp_path)
    found = cells_in_folder(tmp_path)
    assert (len(found.cells), found.foreign) == (4, 2)  # and not the sheets


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "seed",
    "prompt",
    "num_images",
    "num_inference_steps",
    "width",
    "scheduler",
    "model",
    "total_s",
    "load_s",
    "name",
)
PART = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
STRANGER = st.fixed_dictionaries(
    {"config": PART.filter(bool), "request": PART.filter(bool)},
    optional={
        **dict.fromkeys(("image", "timings", "inputs"), PART | JSON),
        "overrides": st.lists(st.text() | JSON) | JSON,
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STRANGER, min_size=1, max_size=3))
def test_whatever_a_strangers_record_holds_nothing_breaks(records: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, about in enumerate(records):
            path = save_media(pixels(number, 4)[None], folder / str(number), "x", record=record(0, 4))
            whole = {"overrides": [], "status": "done", "media": [{"file": "x.png"}], "run_id": None}
            job(path.parent, path, record(0, 4), **whole, record={**about, "images": [about.get("image")]})
        try:
            files = compare_folder(folder)
        except DiffuseError as error:
            assert error.exit_status == 2 and "\n" not in str(error)
        else:
            assert files[0].stat().st_size > 0


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    path = save(tmp_path, 1, 4)
    job(tmp_path, path, record(1, 4))
    path.unlink()
    assert [failure.error for failure in cells_in_folder(tmp_path).failures] == ["seed1_steps4.png is gone"]
