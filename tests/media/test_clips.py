"""Clips that a film goes on from: their last frames, at another rate and size, and files that are none."""

from __future__ import annotations

import subprocess
import tracemalloc
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from videos import grey_video

from diffuse.errors import MediaError
from diffuse.media.clips import read_clip
from diffuse.media.video import Video
from diffuse.schema import Resize

LEVELS = [10 * index for index in range(25)]  # of 25 frames, eight a second


def ffmpeg(*options: str | Path) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, options)], check=True)


def levels(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 10) * 10 for frame in frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip as MP4, WebM, GIF and frames; with longer sound; sound alone; a picture."""
    path = tmp_path_factory.mktemp("clips")
    grey_video(path / "clip.mp4", LEVELS)
    grey_video(path / "clip.gif", LEVELS)
    ffmpeg("-i", path / "clip.mp4", "-c", "copy", "-movflags", "+faststart", path / "fast.mp4")
    ffmpeg("-i", path / "clip.mp4", "-c:v", "libvpx-vp9", "-cpu-used", "8", path / "clip.webm")
    tone = ["-f", "lavfi", "-i", "sine=440:duration=20", "-map", "0:v", "-map", "1:a", "-c:v", "copy"]
    ffmpeg("-i", path / "clip.mp4", *tone, path / "longer.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=440:duration=1", path / "sound.wav")
    (path / "frames").mkdir()
    for index, level in enumerate(LEVELS):
        Image.new("RGB", (48, 32), (level,) * 3).save(path / "frames" / f"frame_{index:05}.png")
    Image.new("RGB", (48, 32)).save(path / "still.png")
    for name in ("fast.mp4", "clip.webm", "clip.mp4"):
        content = (path / name).read_bytes()
        (path / f"cut_{name}").write_bytes(content[: len(content) * 9 // 10])
    (path / "text.mp4").write_text("not a film")
    (path / "empty.mp4").touch()
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "longer.mp4"])
def test_the_last_frames_come_in_order(folder: Path, name: str) -> None:
    clip = read_clip(str(folder / name))
    rate = 25 / 3 if name == "clip.gif" else 8.0  # a GIF counts hundredths of a second
    frames = clip.last_frames(9, rate, 48, 32, Resize.stretch)
    assert (clip.size, clip.fps, frames.shape) == ((48, 32), pytest.approx(rate), (9, 32, 48, 3))
    assert levels(frames) == LEVELS[-9:]
    assert clip.last_frames(9, rate, 48, 32, Resize.stretch) is frames
    every = np.stack(list(Video.open(folder / name).each_frame()))
    np.testing.assert_array_equal(frames, every[-9:])


def test_a_folder_of_frames_is_a_clip(folder: Path) -> None:
    clip = read_clip(str(folder / "frames"))
    assert levels(clip.last_frames(9, 24.0, 48, 32, Resize.stretch)) == LEVELS[-9:]


@pytest.mark.parametrize(("name", "rate"), [("clip.mp4", 8.0), ("clip.gif", 25 / 3)])
@pytest.mark.parametrize("pace", [0.5, 2])
def test_another_rate_keeps_the_pace(folder: Path, name: str, rate: float, pace: float) -> None:
    """At half the frames a second every second one is taken, and at twice as many each is taken twice."""
    clip = read_clip(str(folder / name))
    assert clip.differs_from(rate * pace) and not clip.differs_from(rate + 0.005)
    found = levels(clip.last_frames(5, rate * pace, 48, 32, Resize.stretch))
    steps = {round((after - before) / 10) for before, after in pairwise(found)}
    assert len(found) == 5 and found[-1] >= LEVELS[-2] and steps == ({2} if pace < 1 else {0, 1})


def test_frames_are_resized_as_pictures_are(folder: Path) -> None:
    clip = read_clip(str(folder / "clip.mp4"))
    assert clip.last_frames(1, 8.0, 16, 24, Resize.crop).shape == (1, 24, 16, 3)


@pytest.mark.parametrize("sound", [False, True])
def test_large_frames_are_never_held_together(sound: bool, tmp_path: Path) -> None:
    """Nor where the sound lasts longer, and the clip is read from its beginning."""
    longer = ["-f", "lavfi", "-i", "sine=440:duration=9"] if sound else []
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=480x320:rate=8:duration=3", *longer, tmp_path / "clip.mp4")
    clip = read_clip(str(tmp_path / "clip.mp4"))
    tracemalloc.start()
    try:
        frames = clip.last_frames(24, 8.0, 24, 16, Resize.stretch)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(frames) == 24 and most < 8 * 480 * 320 * 3


def test_more_than_there_are(folder: Path) -> None:
    assert len(read_clip(str(folder / "clip.mp4")).last_frames(33, 8.0, 48, 32, Resize.stretch)) == 25


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sound.wav", "has no video stream that can be read"),
        ("text.mp4", "has no video stream that can be read"),
        ("cut_clip.mp4", "has no video stream that can be read: it is sound, no film, or cut short"),
        ("cut_fast.mp4", "is cut short or damaged; copy it again"),
        ("cut_clip.webm", "is cut short or damaged; copy it again"),
        ("still.png", "is a picture; give it as input_image=FILE"),
        ("empty.mp4", "is empty"),
        ("nothing.mp4", "there is no such file"),
        ("", "is a folder without frame_00000.png"),
    ],
)
def test_what_is_no_clip_is_told_in_a_line(folder: Path, name: str, said: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_clip(str(folder / name)).last_frames(9, 8.0, 48, 32, Resize.stretch)
    assert said in str(caught.value) and str(caught.value).startswith("input_video=") and "\n" not in str(caught.value)


def test_without_ffmpeg_there_is_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(folder / "no such program"))
    with pytest.raises(MediaError, match="ffmpeg") as caught:
        read_clip(str(folder / "clip.mp4")).last_frames(9, 8.0, 48, 32, Resize.stretch)
    assert "\n" not in str(caught.value)


def test_a_clip_in_memory() -> None:
    frames = np.arange(11 * 4 * 6 * 3, dtype=np.uint8).reshape(11, 4, 6, 3)
    clip = read_clip(frames)  # type: ignore[arg-type]
    assert clip.in_memory and clip.fps is None and not clip.differs_from(24.0)
    np.testing.assert_array_equal(clip.last_frames(9, 24.0, 6, 4, Resize.stretch), frames[-9:])
    for wrong, said in (
        (frames[0], r"is an array \[4, 6, 3\] of uint8"),
        (frames / 255, r"of float64; give \[F, H, W, 3\] of uint8"),
        (3, "is of type int"),
    ):
        with pytest.raises(MediaError, match=said):
            read_clip(wrong)  # type: ignore[arg-type]
