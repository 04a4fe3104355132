"""Films are written so that other programs read the frames, the rate, the sound and the record that went in."""

from __future__ import annotations

import subprocess
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from saved_images import refuse
from videos import RECORD

from diffuse.errors import MediaError
from diffuse.media import video_files
from diffuse.media.formats import CLIP_FORMATS, is_video
from diffuse.media.load import read_record
from diffuse.media.save import save_media
from diffuse.media.video import Video

RATE = 24000
FILMS = [row.name for row in CLIP_FORMATS if row.holds_frames]


def moving(count: int, height: int, width: int) -> np.ndarray:
    """A soft pattern that moves, which lossy formats keep well."""
    y, x = np.mgrid[:height, :width]
    shades = [
        [128 + 90 * np.sin((x + 4 * i) / 20), 128 + 90 * np.cos((y - 3 * i) / 25), 0 * x + 90] for i in range(count)
    ]
    return np.stack([np.stack(shade, axis=-1).astype(np.uint8) for shade in shades])


def tone(seconds: float, hertz: float = 440) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * hertz * times), 0.5 * np.sin(2 * np.pi * 2 * hertz * times)]).astype("f4")


def save(frames: np.ndarray, folder: Path, format: str, fps: float = 24, **options: Any) -> Path:
    return save_media(frames, folder, "film", format=format, fps=fps, **{"record": RECORD, **options})


def decoded(path: Path) -> np.ndarray:
    """All frames, by Pillow where it knows the format, and by ffmpeg where not."""
    if path.suffix in (".gif", ".webp", ".avif"):
        with Image.open(path) as image:
            frames = []
            for index in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames)
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def samples(path: Path) -> np.ndarray:
    """The sound of a file, `[C, S]`, as ffmpeg decodes it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "f32le", "-ar", str(RATE), "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<f4").reshape(-1, 2).T


@pytest.mark.parametrize("fps", [24, 24000 / 1001, 7.5], ids=str)
@pytest.mark.parametrize("format", FILMS)
def test_frames_rate_and_record_come_back(format: str, fps: float, tmp_path: Path) -> None:
    frames = moving(9, 64, 48)
    path = save(frames, tmp_path, format, fps)

    assert path.name == f"film.{format}" and [path] == list(tmp_path.iterdir())
    ours = decoded(path)
    assert ours.shape == frames.shape
    assert np.abs(ours.astype(int) - frames).mean() < (10 if format == "gif" else 3)
    assert read_record(path) == RECORD
    video = Video.open(path)
    assert is_video(path) and (video.width, video.height) == (48, 64)
    assert video.seconds == pytest.approx(9 / fps, abs=0.02)
    assert len(video.frames(4)) == 4


@pytest.mark.parametrize(("height", "width"), [(33, 48), (32, 47), (33, 47), (1, 1)])
@pytest.mark.parametrize("format", FILMS)
def test_sides_may_be_odd(format: str, height: int, width: int, tmp_path: Path) -> None:
    frames = moving(2, height, width)
    ours = decoded(save(frames, tmp_path, format))
    if format == "mp4":
        assert ours.shape[1:3] == (height + height % 2, width + width % 2)
    else:
        assert ours.shape == frames.shape
    assert np.abs(ours[:, :height, :width].astype(int) - frames).mean() < 16


@pytest.mark.parametrize("format", ["mp4", "webm", "wav"])
def test_the_sound_comes_back(format: str, tmp_path: Path) -> None:
    sound = tone(1.0)
    path = save(moving(25, 32, 32), tmp_path, format, sound=sound, sample_rate=RATE)
    ours = samples(path)[:, : sound.shape[1]]
    assert ours.shape[1] >= RATE - 1100  # an encoder's last packet may be short
    strongest = np.abs(np.fft.rfft(ours[:, 2000:20000])).argmax(axis=1) * RATE / 18000
    assert strongest == pytest.approx([440, 880], abs=2)
    assert ours[:, 4000:8000].std(axis=1) == pytest.approx([0.5 / 2**0.5] * 2, rel=0.05)
    assert read_record(path) == RECORD
    assert is_video(path) is (format != "wav")


def test_a_wav_is_one_that_python_reads(tmp_path: Path) -> None:
    sound = tone(0.1)
    with wave.open(str(save(moving(2, 8, 8), tmp_path, "wav", sound=sound, sample_rate=RATE))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, RATE, 2)
        ours = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).T / 32768
    assert np.abs(ours - sound).max() < 1e-4


@pytest.mark.parametrize("format", [*FILMS, "wav"])
def test_the_same_film_gives_the_same_bytes(format: str, tmp_path: Path) -> None:
    frames, sound = moving(4, 32, 32), tone(0.2)
    first, second = (
        save(frames, tmp_path / name, format, sound=sound, sample_rate=RATE).read_bytes() for name in ("a", "b")
    )
    assert first == second


def test_frames_are_a_folder(tmp_path: Path) -> None:
    frames = moving(3, 9, 7)
    first = save(frames, tmp_path, "frames", sound=tone(0.1), sample_rate=RATE)
    second = save(frames, tmp_path, "frames")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film", "film_1"]
    names = [f"frame_{index:05}.png" for index in range(3)]
    assert sorted(path.name for path in first.iterdir()) == [*names, "sound.wav"]
    assert sorted(path.name for path in second.iterdir()) == names
    for name, frame in zip(names, frames, strict=True):
        assert np.array_equal(np.asarray(Image.open(first / name)), frame)
    assert read_record(first / names[0]) == RECORD


@pytest.mark.parametrize("format", FILMS)
def test_a_higher_quality_is_nearer_and_larger(format: str, tmp_path: Path) -> None:
    frames = moving(4, 64, 64) ^ (np.random.default_rng(0).integers(0, 16, (4, 64, 64, 3), dtype=np.uint8))
    low, high = (save(frames, tmp_path, format, quality=quality) for quality in (20, 95))
    if format == "gif":
        assert low.read_bytes() == high.read_bytes()
        return
    assert low.stat().st_size < high.stat().st_size
    errors = [np.abs(decoded(path).astype(int) - frames).mean() for path in (low, high)]
    assert errors[0] > errors[1]


def test_a_film_with_sound_is_saved_without_it_where_the_format_has_none(tmp_path: Path) -> None:
    for format in ("gif", "webp", "avif"):
        path = save(moving(2, 8, 8), tmp_path, format, sound=tone(0.1), sample_rate=RATE)
        assert not Video.open(path).has_sound


def test_films_that_cannot_be_saved_are_refused(tmp_path: Path) -> None:
    film = moving(2, 8, 8)
    refuse(lambda: save(film, tmp_path, "wav"), "output.format=wav", "has none", "mp4")
    for format in ("png", "jpg", "tiff", "mkv"):
        refuse(lambda format=format: save(film, tmp_path, format), f"output.format={format}", "no film", "frames")
    refuse(lambda: save(np.zeros((1, 2, 16386, 3), np.uint8), tmp_path, "mp4"), "16384", "use frames")
    refuse(lambda: save(film[:0], tmp_path, "mp4"), "one frame")
    for quality in (0, 101):
        refuse(lambda quality=quality: save(film, tmp_path, "mp4", quality=quality), "output.quality")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", [*FILMS, "wav", "frames"])
def test_without_ffmpeg_nothing_is_made(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    refuse(lambda: save(moving(2, 8, 8), tmp_path, format, sound=tone(0.1), sample_rate=RATE), "ffmpeg", "install")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", [*FILMS, "wav", "frames"])
def test_an_ffmpeg_that_fails_leaves_nothing(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'Conversion failed!' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    folder = tmp_path / "made"
    refuse(
        lambda: save(moving(50, 128, 128), folder, format, sound=tone(0.1), sample_rate=RATE),
        "could not be saved",
        "Conversion failed",
    )
    assert list(folder.iterdir()) == []


def test_frames_are_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg gets each frame by itself, in the layout that the film has in memory."""
    sizes = []
    feed = video_files.feed_frames

    def follow(options: Any, frames: Any) -> None:
        assert not isinstance(frames, list | np.ndarray) or len(frames) == 0
        feed(options, (sizes.append(frame.nbytes) or frame for frame in frames))

    monkeypatch.setattr(video_files, "feed_frames", follow)
    frames = moving(6, 16, 16)
    for format in FILMS:
        sizes.clear()
        save(frames, tmp_path, format)
        assert sizes == [frames[0].nbytes] * 6


def test_an_xmp_packet_of_another_program_is_no_record(tmp_path: Path) -> None:
    path = save(moving(2, 8, 8), tmp_path, "avif")
    content = path.read_bytes()
    for changed in (content[: content.index(b"uuid") - 4], content.replace(b"rdf:li", b"rdf:xx"), content[:-1]):
        path.write_bytes(changed)
        with pytest.raises(MediaError, match=r"no record|damaged"):
            read_record(path)


def test_rates_are_exact() -> None:
    for rate in (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(25), Fraction(15, 2), Fraction(8000, 667)):
        assert Fraction(float(rate)).limit_denominator(video_files._LONGEST_RATE) == rate
