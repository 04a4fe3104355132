"""The table of formats agrees with the schema, with the files that it writes, and with what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_images import FORMATS, noisy, pixels, save
from videos import grey_video

from diffuse.errors import MediaError
from diffuse.media.formats import (
    PILLOW_FORMATS,
    STILL_FORMATS,
    VIDEO_FORMATS,
    embed_type,
    format_of,
    is_lossless,
    is_video,
    output_format,
)
from diffuse.media.load import image_sha256
from diffuse.media.pixels import pixels_sha256
from diffuse.schema import ImageFormat


def test_the_table_and_the_schema_name_the_same_formats() -> None:
    assert [row.name for row in STILL_FORMATS] == [format.value for format in ImageFormat]
    assert [format.name for format in ImageFormat] == [format.value for format in ImageFormat]


def test_names_and_suffixes_are_of_one_format_each() -> None:
    rows = [*STILL_FORMATS, *VIDEO_FORMATS]
    suffixes = [suffix for row in rows for suffix in row.suffixes]
    assert len(suffixes) == len(set(suffixes))
    for row in rows:
        assert row.suffixes[0] == f".{row.name}"
        for suffix in row.suffixes:
            assert format_of(Path(f"a.b{suffix}")) is format_of(Path(f"a{suffix.upper()}")) is row
    for name in ("a.txt", "a", ".png", "png"):
        assert format_of(Path(name)) is None and embed_type(Path(name)) is None and not is_lossless(Path(name))


@pytest.mark.parametrize("row", STILL_FORMATS, ids=lambda row: row.name)
def test_a_row_says_how_its_files_are_read_and_whether_they_lose(row, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    image = noisy(24, 40)
    path = save(image, tmp_path, format=row.name, quality=100)
    assert format_of(path) is row is output_format(row.name) is output_format(ImageFormat(row.name))
    with Image.open(path) as opened:
        assert opened.format == row.pillow and row.pillow in PILLOW_FORMATS
    assert np.array_equal(pixels(path), image) is row.lossless is is_lossless(path)
    assert (image_sha256(path) == pixels_sha256(image)) is row.lossless
    assert not is_video(path)


@pytest.mark.parametrize("row", [row for row in VIDEO_FORMATS if row.has_frames], ids=lambda row: row.name)
def test_a_video_begins_as_its_row_says(row, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = grey_video(tmp_path / f"x.{row.name}", [20, 80])
    offset, magic = row.magic
    assert path.read_bytes()[offset:].startswith(magic)
    assert is_video(path) and not is_lossless(path)


def test_a_video_is_no_output_format_yet() -> None:
    for name in ("mp4", "webm", "gif", "PNG", "", "jpeg"):
        with pytest.raises(MediaError, match=", ".join(FORMATS)):
            output_format(name)
