"""Videos are read: the record inside, frames evenly over the length, and a small copy for browsers."""

from __future__ import annotations

from pathlib import Path

import pytest
from videos import RECORD, grey_video

from diffuse.errors import MediaError
from diffuse.media.load import read_record
from diffuse.media.video import Video


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_the_record_and_the_frames_come_back(suffix: str, tmp_path: Path) -> None:
    path = grey_video(tmp_path / f"-odd %03d:name.{suffix}", [20, 80, 140, 200])

    assert read_record(path) == RECORD
    video = Video.open(path)
    assert (video.width, video.height) == (48, 32)
    assert video.seconds == pytest.approx(0.5, abs=0.03)
    assert [int(frame.mean()) for frame in video.frames(4)] == pytest.approx([20, 80, 140, 200], abs=3)
    assert [int(frame.mean()) for frame in video.frames(2)] == pytest.approx([20, 140], abs=3)
    assert len(video.frames(50)) <= 6


def test_a_preview_is_small_and_plays(tmp_path: Path) -> None:
    preview = tmp_path / "preview.webm"
    preview.write_bytes(Video.open(grey_video(tmp_path / "a.mp4", [50] * 16)).preview(24))

    small = Video.open(preview)
    assert (small.width, small.height) == (24, 16)
    assert small.frames(1).mean() == pytest.approx(50, abs=3)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_what_holds_no_record_is_refused_in_one_line(suffix: str, tmp_path: Path) -> None:
    foreign = grey_video(tmp_path / f"foreign.{suffix}", [20, 80], record="by another program")
    text = tmp_path / f"text.{suffix}"
    text.write_text("this is no video")
    for path, reason in (
        (foreign, "holds no record"),
        (text, "damaged"),
        (tmp_path / f"no.{suffix}", r"no such file|damaged"),
    ):
        with pytest.raises(MediaError, match=reason):
            read_record(path)
    for path in (text, tmp_path / "no.mp4"):
        with pytest.raises(MediaError):
            Video.open(path)
