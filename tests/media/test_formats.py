"""The table of formats agrees with the schema, with the files that it writes, and with what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_images import FORMATS, noisy, pixels, refuse, save
from videos import grey_video

from diffuse.errors import MediaError
from diffuse.media.formats import (
    CLIP_FORMATS,
    FRAMES,
    PILLOW_FORMATS,
    STILL_FORMATS,
    VIDEO_FORMATS,
    chosen_format,
    embed_type,
    format_of,
    is_lossless,
    is_still,
    is_video,
    output_format,
)
from diffuse.media.load import image_sha256
from diffuse.media.pixels import pixels_sha256
from diffuse.schema import OutputFormat


def test_the_table_and_the_schema_name_the_same_formats() -> None:
    names = {*(row.name for row in STILL_FORMATS), *(row.name for row in CLIP_FORMATS), FRAMES}
    assert names == {format.value for format in OutputFormat}
    assert [format.name for format in OutputFormat] == [format.value for format in OutputFormat]


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
    assert format_of(path) is row is output_format(row.name) is output_format(OutputFormat(row.name))
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


def test_a_picture_is_not_saved_as_a_film() -> None:
    for name in ("mp4", "webm", "gif", "PNG", "", "jpeg"):
        with pytest.raises(MediaError, match=", ".join(FORMATS)):
            output_format(name)


def test_null_is_a_format_for_each_kind_and_no_name_is_of_the_other_kind() -> None:
    assert chosen_format(None, is_film=False) is OutputFormat.png
    assert chosen_format(None, is_film=True) is OutputFormat.mp4
    for name in OutputFormat:
        for is_film, row in ((False, STILL_FORMATS), (True, CLIP_FORMATS)):
            if name.value in {each.name for each in row} or (is_film and name.value == FRAMES):
                assert chosen_format(name, is_film=is_film) is chosen_format(name.value, is_film=is_film) is name
            else:
                refuse(lambda: chosen_format(name, is_film=is_film), f"output.format={name.value}", "choose one of")  # noqa: B023


def test_what_a_film_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "film.png"  # a folder of any name
    folder.mkdir()
    assert not is_video(folder)
    save(noisy(4, 4), folder, "frame_00000")
    assert is_video(folder) and is_lossless(folder) and not is_still(folder)
    assert is_still(folder / "frame_00000.png") and not is_still(tmp_path / "a.mp4")
    moving = tmp_path / "x.webp"
    Image.new("RGB", (8, 8)).save(moving, save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    assert is_video(moving) and not is_still(moving) and embed_type(moving) is None
    assert embed_type(save(noisy(4, 4), tmp_path, format="webp")) == "image/webp"
