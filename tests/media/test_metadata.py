"""The record and the parameters inside a file, as other programs find them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import piexif
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from saved_images import FORMATS, RECORD, exif, pixels, save, smooth
from viewers import parameters_of, webui_parameters

from diffuse.media.load import read_record


@pytest.mark.parametrize("format", FORMATS)
def test_the_record_is_inside(format: str, tmp_path: Path) -> None:
    path = save(smooth(16, 16), tmp_path, format=format, parameters="a 🚀\nSteps: 1")
    assert read_record(path) == RECORD
    if format == "png":
        with Image.open(path) as picture:
            assert isinstance(picture, Image.Image) and set(picture.info) == {"diffuse", "parameters"}
            assert json.loads(picture.info["diffuse"]) == RECORD
            assert picture.info["parameters"] == "a 🚀\nSteps: 1"
    else:
        description, comment = exif(path)
        assert json.loads(description) == RECORD
        assert comment == "a 🚀\nSteps: 1"


# What a command line can hold, bytes that are not UTF-8 among it, and NUL from a file of prompts.
ANYTHING = st.text(
    st.characters(exclude_categories=("Cs",)) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)


@settings(max_examples=40, deadline=None)
@given(text=ANYTHING, format=st.sampled_from(FORMATS))
@example(text="\0\udc80\udfff", format="png")
@example(text="\0\udc80\udfff", format="webp")
def test_any_text_in_the_record_comes_back(text: str, format: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(smooth(2, 2), Path(folder), format=format, record={"prompt": text}, parameters=text)
        assert read_record(path) == {"prompt": text}


def test_a_record_that_no_jpg_can_hold_is_said_to_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A JPG's marker holds 64 KiB: the line of parameters goes first, then the record."""
    half = {"prompt": "x" * 40_000, "image": {"seed": 1}}
    path = save(smooth(4, 4), tmp_path, format="jpg", record=half, parameters="y" * 40_000)
    assert read_record(path) == half
    assert exif(path)[1] == ""
    assert "parameters that image viewers show do not fit" in caplog.text
    path = save(smooth(4, 4), tmp_path, format="jpg", record={**half, "prompt": "x" * 70_000})
    assert pixels(path).shape == (4, 4, 3)
    assert read_record(path)["image"] == {"seed": 1}
    assert "output.format=png" in caplog.text
    for format in ("png", "webp"):  # which have no such limit
        large = {"prompt": "x" * 200_000}
        assert read_record(save(smooth(4, 4), tmp_path, format=format, record=large)) == large


PARAMETERS = (
    "a cat 猫 🚀, é\nNegative prompt: blue\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x48, RNG: CPU"
)


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("record", [RECORD, {}, {"odd": "x" * 3}, {"long": "é" * 5000}])
def test_the_web_ui_reads_the_parameters(format: str, record: dict[str, object], tmp_path: Path) -> None:
    """Through piexif, which gives bytes for the type UNDEFINED alone."""
    path = save(smooth(48, 64), tmp_path, format=format, record=record, parameters=PARAMETERS)
    with Image.open(path) as picture:
        assert parameters_of(picture) == PARAMETERS
        pairs = webui_parameters(picture)
        assert (pairs["Prompt"], pairs["Negative prompt"], pairs["Seed"]) == ("a cat 猫 🚀, é", "blue", "5")
    assert read_record(path) == record


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_piexif_takes_the_whole_data_apart_and_together_again(format: str, tmp_path: Path) -> None:
    path = save(smooth(8, 8), tmp_path, format=format, parameters=PARAMETERS)
    with Image.open(path) as picture:
        found = piexif.load(picture.info["exif"])
    assert set(found["0th"]) == {piexif.ImageIFD.ImageDescription, piexif.ImageIFD.ExifTag}
    assert set(found["Exif"]) == {piexif.ExifIFD.UserComment}
    assert piexif.load(piexif.dump(found))["Exif"] == found["Exif"]
    assert "Exif" in piexif.load(str(path))


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_a_reader_of_prompts_reads_the_parameters(format: str, tmp_path: Path) -> None:
    """sd-prompt-reader has a window and an old Pillow among its requirements: it is tried where it is there."""
    reader = pytest.importorskip("sd_prompt_reader.image_data_reader")
    path = save(smooth(48, 64), tmp_path, format=format, parameters=PARAMETERS)
    with open(path, "rb") as file:
        found = reader.ImageDataReader(file)
    assert found.tool == "A1111 webUI"
    assert (found.positive, found.negative) == ("a cat 猫 🚀, é", "blue")
    assert (found.parameter["seed"], found.parameter["sampler"], found.parameter["size"]) == ("5", "Euler", "64x48")
