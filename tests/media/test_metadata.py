"""The record and the parameters inside a file, as other programs find them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from saved_images import FORMATS, RECORD, exif, pixels, save, smooth

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
    assert not caplog.records
    path = save(smooth(4, 4), tmp_path, format="jpg", record={**half, "prompt": "x" * 70_000})
    assert pixels(path).shape == (4, 4, 3)
    assert read_record(path)["image"] == {"seed": 1}
    assert "output.format=png" in caplog.text
    for format in ("png", "webp"):  # which have no such limit
        large = {"prompt": "x" * 200_000}
        assert read_record(save(smooth(4, 4), tmp_path, format=format, record=large)) == large
