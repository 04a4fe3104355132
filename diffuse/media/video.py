"""Videos in files, through ffmpeg: the comment that holds the record, the frames, and a small copy for browsers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.metadata import xmp_record

_SECONDS = 120  # for one call of ffmpeg
_COMMENT = re.compile(rb"^comment=((?:[^\\\n]|\\.)*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Video:
    """A video file: its size, rate and length."""

    path: Path
    width: int  # pixels
    height: int
    fps: float
    seconds: float

    @classmethod
    def open(cls, path: Path) -> Video:
        """Reads what the file says of itself.

        Raises:
            MediaError: there is no video in it.
        """
        if _is_avif(path):
            return cls(path, *_avif_sizes(path))
        with closing(_reader(path)) as reader:
            metadata = next(reader)
            width, height = metadata["size"]
            seconds = float(metadata.get("duration") or 0)
            if not seconds:  # a GIF of one frame, or a stream that was cut: the frames that can be decoded count
                seconds = sum(1 for _ in reader) / float(metadata["fps"] or 1)
        return cls(path, int(width), int(height), float(metadata["fps"]), seconds)

    def frames(self, count: int) -> np.ndarray:
        """Returns up to `count` frames, uint8 RGB `[F, H, W, 3]`, evenly over the length, from the first one on.

        Raises:
            MediaError: none can be decoded.
        """
        if _is_avif(self.path):
            return _avif_frames(self.path, count)
        fps = min(self.fps, count / self.seconds) if self.seconds else self.fps
        # A little slower, or rounding would take the frame before the one that begins at that moment.
        options = ["-vf", f"fps=fps={fps * 0.999:.9f}:round=up", "-frames:v", str(count)]
        with closing(_reader(self.path, options)) as reader:
            next(reader)
            frames = [np.frombuffer(raw, np.uint8).reshape(self.height, self.width, 3) for raw in reader]
        if not frames:
            raise MediaError(f"{self.path} holds no frame that can be decoded; it is damaged")
        return np.stack(frames)

    def preview(self, side: int) -> bytes:
        """Returns a WebM (VP9) whose sides are even and at most `side` pixels, without sound."""
        scale = f"scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease:force_divisible_by=2"
        quality = ["-c:v", "libvpx-vp9", "-crf", "34", "-b:v", "0", "-cpu-used", "5", "-row-mt", "1"]
        film = ["-map", "0:v:1"] if _is_avif(self.path) else []  # the first is its still picture
        return _ffmpeg(self.path, *film, "-an", "-vf", scale, "-pix_fmt", "yuv420p", *quality, "-f", "webm")


def video_comment(path: Path) -> bytes:
    """Returns the comment in the container of an MP4 or a WebM, empty if there is none.

    Raises:
        MediaError: there is no video in the file.
    """
    match = _COMMENT.search(_ffmpeg(path, "-f", "ffmetadata"))
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
    with _avif(path):
        return (xmp_record(path) or "").encode()


def _is_avif(path: Path) -> bool:
    """Returns whether Pillow reads the file: ffmpeg takes an AVIF for the still picture that stands before the film."""
    return path.suffix.lower() == ".avif"


def _avif_sizes(path: Path) -> tuple[int, int, float, float]:
    """Returns width, height, frames a second and seconds of an AVIF."""
    with _avif(path) as image:
        milliseconds = 0
        count = getattr(image, "n_frames", 1)
        for index in range(count):
            image.seek(index)
            image.load()
            milliseconds += image.info.get("duration", 0)
        seconds = milliseconds / 1000
        return image.width, image.height, count / seconds if seconds else 1.0, seconds


def _avif_frames(path: Path, count: int) -> np.ndarray:
    """Returns up to `count` frames of an AVIF, uint8 RGB `[F, H, W, 3]`, evenly from the first one on."""
    with _avif(path) as image:
        total = getattr(image, "n_frames", 1)
        frames = []
        for index in range(min(count, total)):
            image.seek(index * total // min(count, total))
            frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames)


@contextmanager
def _avif(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=("AVIF",)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made") from error


def _reader(path: Path, output: Sequence[str] = ()) -> Generator[Any, None, None]:
    """Yields what ffmpeg says of the file, then each frame as RGB bytes."""
    import imageio_ffmpeg

    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give a video that diffuse made")
    try:
        yield from imageio_ffmpeg.read_frames(file_url(path), output_params=list(output))
    except (OSError, RuntimeError) as error:
        raise MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made") from error


def _ffmpeg(path: Path, *output: str) -> bytes:
    """Returns what ffmpeg writes of the file with these options."""
    import imageio_ffmpeg

    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give a video that diffuse made")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", file_url(path), *output, "-"]
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=True)
    except subprocess.SubprocessError as error:
        raise MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made") from error
    return process.stdout


def file_url(path: Path) -> str:
    """Returns a name that ffmpeg takes for a file, and not for an option, a protocol or a pattern."""
    return f"file:{path.absolute()}"
