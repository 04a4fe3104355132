"""Films in files: frames, sound, the record in the comment, and a small copy for browsers.

MP4 and WebM are read through ffmpeg, GIF, WebP and AVIF through Pillow; a folder of frames is read picture by picture.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.ffmpeg import convert_media, feed_frames, ffmpeg_program, file_url
from diffuse.media.metadata import parse_record, png_record, xmp_record
from diffuse.media.pixels import frames_sha256

FIRST_FRAME = "frame_00000.png"  # of a folder of frames
SOUND_FILE = "sound.wav"  # beside them
_ALL_FRAMES = "frame_[0-9]*.png"
_USUAL_RATE = 24.0  # frames a second, of a folder whose record does not say it
_BY_PILLOW = {".avif": "AVIF", ".gif": "GIF", ".webp": "WEBP"}  # ffmpeg shows frames of unlike lengths several times
_COMMENT = re.compile(rb"^comment=((?:[^\\\n]|\\.)*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Video:
    """A film in a file or in a folder: its size, rate and length."""

    path: Path
    width: int  # pixels
    height: int
    fps: float
    seconds: float
    has_sound: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def is_picture(self) -> bool:
        """Tells whether it is a GIF, a WebP or an AVIF of one frame."""
        return self.path.suffix.lower() in _BY_PILLOW and self._count() == 1

    @classmethod
    def open(cls, path: Path) -> Video:
        """Reads what the file says of itself.

        Raises:
            MediaError: there is no film in it.
        """
        if is_frames_folder(path):
            frame, rate = _first_frame(path)
            count = len(_frame_files(path))
            return cls(path, frame.width, frame.height, rate, count / rate, (path / SOUND_FILE).is_file())
        if path.suffix.lower() in _BY_PILLOW:
            return cls(path, *_animation_sizes(path))
        with closing(_reader(path)) as reader:
            metadata = next(reader)
            width, height = metadata["size"]
            seconds = float(metadata.get("duration") or 0)
            if not seconds:  # a GIF of one frame, or a stream that was cut: the frames that can be decoded count
                seconds = sum(1 for _ in reader) / float(metadata["fps"] or 1)
        return cls(path, int(width), int(height), float(metadata["fps"]), seconds, bool(metadata.get("audio_codec")))

    def frames(self, count: int) -> np.ndarray:
        """Returns up to `count` frames, uint8 RGB `[F, H, W, 3]`, evenly over the length, from the first one on.

        Raises:
            MediaError: none can be decoded.
        """
        if self.is_streamed:
            fps = min(self.fps, count / self.seconds) if self.seconds else self.fps
            # A little slower, or rounding would take the frame before the one that begins at that moment.
            options = ["-vf", f"fps=fps={fps * 0.999:.9f}:round=up", "-frames:v", str(count)]
            frames = list(self._decoded(options))
        else:
            total = self._count()
            frames = list(self._chosen([index * total // min(count, total) for index in range(min(count, total))]))
        if not frames:
            raise MediaError(f"{self.path} holds no frame that can be decoded; it is damaged")
        return np.stack(frames)

    def each_frame(self) -> Iterator[np.ndarray]:
        """Yields every frame, uint8 RGB `[H, W, 3]`, one at a time.

        Raises:
            MediaError: one cannot be decoded.
        """
        if self.is_streamed:
            yield from self._decoded(["-fps_mode", "passthrough"])
        else:
            yield from self._chosen(range(self._count()))

    def last_frames(self, count: int, fps: float | None = None) -> Iterator[np.ndarray]:
        """Yields up to `count` of the last frames, uint8 RGB `[H, W, 3]`, of a film that is not streamed.

        Args:
            fps: frames a second, where they are to be others than the film's.

        Raises:
            MediaError: one cannot be decoded.
        """
        total, pace = self._count(), self.fps / (fps or self.fps)
        indices = [total - 1 - math.floor(step * pace) for step in range(count)]
        yield from self._chosen([index for index in reversed(indices) if index >= 0])

    def pixels_sha256(self) -> str:
        """Returns the digest of the frames of a folder, or of those that Pillow decodes; see `pixels.pixels_sha256`."""
        return frames_sha256((self._count(), self.height, self.width, 3), self.each_frame())

    def sound(self) -> tuple[np.ndarray, int] | None:
        """Returns the sound, float32 `[C, S]`, and its samples a second; None where there is none.

        Raises:
            MediaError: it cannot be decoded.
        """
        if not self.has_sound:
            return None
        path = self.path / SOUND_FILE if is_frames_folder(self.path) else self.path
        return read_sound(path)

    def preview(self, side: int) -> bytes:
        """Returns a WebM (VP9, Opus) whose sides are even and at most `side` pixels.

        Raises:
            MediaError: the film cannot be decoded.
        """
        scale = f"scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease:force_divisible_by=2"
        picture = ["-c:v", "libvpx-vp9", "-crf", "34", "-b:v", "0", "-cpu-used", "5", "-row-mt", "1"]
        options = ["-vf", scale, "-pix_fmt", "yuv420p", *picture, "-c:a", "libopus", "-b:a", "64k", "-f", "webm"]
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "preview.webm"  # not a pipe, into which no length can be written
            if self.is_streamed:
                convert_media(self.path, "-map", "0:v:0", "-map", "0:a:0?", *options, target=file_url(target))
            else:
                size = ["-pix_fmt", "rgb24", "-s", f"{self.width}x{self.height}", "-framerate", f"{self.fps:.9f}"]
                sound = ["-i", file_url(self.path / SOUND_FILE)] if self.has_sound else []
                maps = ["-map", "0:v", *(["-map", "1:a"] if sound else [])]
                frames = ["-f", "rawvideo", *size, "-i", "pipe:0"]
                try:
                    feed_frames([*frames, *sound, *maps, *options, file_url(target)], self.each_frame())
                except OSError as error:
                    raise MediaError(f"{self.path} cannot be shown: {error}; it may be damaged") from error
            return target.read_bytes()

    @property
    def is_streamed(self) -> bool:
        """Tells whether ffmpeg reads the file."""
        return self.path.suffix.lower() not in _BY_PILLOW and not is_frames_folder(self.path)

    def _decoded(self, options: Sequence[str]) -> Iterator[np.ndarray]:
        with closing(_reader(self.path, options)) as reader:
            next(reader)
            for raw in reader:
                yield np.frombuffer(raw, np.uint8).reshape(self.height, self.width, 3)

    def _count(self) -> int:
        if is_frames_folder(self.path):
            return len(_frame_files(self.path))
        with _open(self.path) as image:
            return getattr(image, "n_frames", 1)

    def _chosen(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yields the frames with these indices, which increase."""
        if is_frames_folder(self.path):
            files = _frame_files(self.path)
            for index in indices:
                with _open(files[index]) as image:
                    if image.size != (self.width, self.height):
                        raise MediaError(f"{files[index]} is not of the size of {FIRST_FRAME}; give frames of one film")
                    yield _pixels(image, files[index])
            return
        with _open(self.path) as image:
            for index in indices:
                yield _pixels(image, self.path, index)


def is_frames_folder(path: Path) -> bool:
    """Returns whether `path` is a folder of the frames of a film, as `output.format=frames` makes it."""
    try:
        return (path / FIRST_FRAME).is_file()
    except (OSError, ValueError):
        return False


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Reads the sound of a film or of a WAV, float32 `[C, S]`, and its samples a second.

    Source: "Multimedia Programming Interface and Data Specifications 1.0", IBM and Microsoft, section on WAVE.

    Raises:
        MediaError: there is none that can be read.
    """
    content = convert_media(path, "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav")
    place = 12
    channels = rate = 0
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        if name == b"fmt ":
            channels, rate = struct.unpack_from("<HI", content, place + 10)
        elif name == b"data" and channels:
            samples = np.frombuffer(content, "<f4", offset=place + 8, count=(len(content) - place - 8) // 4)
            return samples[: len(samples) // channels * channels].reshape(-1, channels).T, rate
        place += 8 + size + size % 2
    raise MediaError(f"{path} holds no sound that can be read; it is damaged")


def video_comment(path: Path) -> bytes:
    """Returns the comment in the container of an MP4 or a WebM, empty if there is none.

    Raises:
        MediaError: there is no video in the file.
    """
    match = _COMMENT.search(convert_media(path, "-f", "ffmetadata"))
    return re.sub(rb"\\(.)", rb"\1", match[1], flags=re.DOTALL) if match else b""


def gif_comment(path: Path) -> bytes:
    """Returns the comment in a GIF, which ffmpeg does not show; empty if there is none.

    Raises:
        MediaError: there is no GIF in the file.
    """
    try:
        with Image.open(path, formats=("GIF",)) as image:
            comment: bytes = image.info.get("comment", b"")
            return comment
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{path} is no GIF that can be read, or is damaged; give one that diffuse made") from error


def avif_description(path: Path) -> bytes:
    """Returns the description in the XMP packet of an AVIF, empty if there is none.

    Raises:
        MediaError: there is no AVIF in the file.
    """
    with _open(path):
        return (xmp_record(path) or "").encode()


def _frame_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(_ALL_FRAMES))


def _first_frame(folder: Path) -> tuple[Image.Image, float]:
    """Returns the first frame of a folder, closed, and the frames a second that its record says."""
    with _open(folder / FIRST_FRAME) as image:
        try:
            rate = parse_record(png_record(image), folder)["image"]["fps"]
        except (MediaError, KeyError, TypeError):
            rate = None
        is_rate = isinstance(rate, int | float) and math.isfinite(rate) and 0 < rate < 1000
        return image, float(rate) if is_rate else _USUAL_RATE


def _animation_sizes(path: Path) -> tuple[int, int, float, float]:
    """Returns width, height, frames a second and seconds of a GIF, a WebP or an AVIF."""
    with _open(path) as image:
        milliseconds = 0
        count = getattr(image, "n_frames", 1)
        for index in range(count):
            _pixels(image, path, index)
            milliseconds += image.info.get("duration", 0)
        seconds = milliseconds / 1000
        return image.width, image.height, count / seconds if seconds else 1.0, seconds


def _open(path: Path) -> Image.Image:
    """Opens a picture, or an animation that Pillow reads."""
    try:
        return Image.open(path, formats=(_BY_PILLOW.get(path.suffix.lower(), "PNG"),))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path) from error


def _pixels(image: Image.Image, path: Path, index: int = 0) -> np.ndarray:
    """Returns frame `index` of an open image, uint8 RGB `[H, W, 3]`."""
    try:
        image.seek(index)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> MediaError:
    return MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made")


def _reader(path: Path, output: Sequence[str] = ()) -> Generator[Any, None, None]:
    """Yields what ffmpeg says of the file, then each frame as RGB bytes."""
    import imageio_ffmpeg

    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give a video that diffuse made")
    ffmpeg_program()
    try:
        yield from imageio_ffmpeg.read_frames(file_url(path), output_params=list(output))
    except (OSError, RuntimeError) as error:
        raise _unreadable(path) from error
