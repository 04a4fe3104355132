"""Videos in files, through ffmpeg: the record inside one, its frames, and a small copy that every browser plays.

The record is JSON in the container's `comment`, which MP4, WebM and GIF all have.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.errors import MediaError

SUFFIXES = (".mp4", ".webm", ".gif")

_SECONDS = 120  # for one call of ffmpeg
_COMMENT = re.compile(rb"^comment=((?:[^\\\n]|\\.)*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Video:
    """What a video is, and where."""

    path: Path
    width: int  # pixels
    height: int
    fps: float
    seconds: float

    @classmethod
    def open(cls, path: Path) -> Video:
        """Raises MediaError where there is no video."""
        with closing(_reader(path)) as reader:
            about = next(reader)
            width, height = about["size"]
            seconds = float(about.get("duration") or 0)
            if not seconds:  # a GIF of one frame, or a stream that was cut: what can be decoded counts
                seconds = sum(1 for _ in reader) / float(about["fps"] or 1)
        return cls(path, int(width), int(height), float(about["fps"]), seconds)

    def frames(self, count: int) -> np.ndarray:
        """Up to `count` frames, uint8 RGB `[F, H, W, 3]`, evenly over the whole length, the first among them."""
        wanted = min(self.fps, count / self.seconds) if self.seconds else self.fps
        # A little slower, or rounding would take the frame before the one that begins at that moment.
        picked = ["-vf", f"fps=fps={wanted * 0.999:.9f}:round=up", "-frames:v", str(count)]
        with closing(_reader(self.path, picked)) as reader:
            next(reader)
            found = [np.frombuffer(raw, np.uint8).reshape(self.height, self.width, 3) for raw in reader]
        if not found:
            raise MediaError(f"{self.path} holds no frame that can be decoded; it is damaged")
        return np.stack(found)

    def preview(self, side: int) -> bytes:
        """A WebM (VP9) of at most `side` pixels, with even sides and without sound."""
        scale = f"scale='min({side},iw)':'min({side},ih)':force_original_aspect_ratio=decrease:force_divisible_by=2"
        quality = ["-c:v", "libvpx-vp9", "-crf", "34", "-b:v", "0", "-cpu-used", "5", "-row-mt", "1"]
        return _ffmpeg(self.path, "-an", "-vf", scale, "-pix_fmt", "yuv420p", *quality, "-f", "webm")


def read_record(path: Path) -> dict[str, Any]:
    """The record inside a video. It is data from a file: nothing in it has been checked.

    Raises MediaError where there is no such file, or no record in it.
    """
    try:
        record = json.loads(_comment(path))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise MediaError(f"{path} holds no record of diffuse's; it was made or rewritten by another program")
    return record


def _comment(path: Path) -> bytes:
    """The container's comment, empty where there is none."""
    if path.suffix.lower() != ".gif":
        match = _COMMENT.search(_ffmpeg(path, "-f", "ffmetadata"))
        return re.sub(rb"\\(.)", rb"\1", match[1], flags=re.DOTALL) if match else b""
    from PIL import Image  # ffmpeg does not tell a GIF's

    try:
        with Image.open(path, formats=("GIF",)) as picture:
            found: bytes = picture.info.get("comment", b"")
            return found
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{path} is no GIF that can be read, or is damaged; give one that diffuse made") from error


def _reader(path: Path, output: Sequence[str] = ()) -> Generator[Any, None, None]:
    """First what ffmpeg says of the file, then each frame as RGB bytes."""
    import imageio_ffmpeg

    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give a video that diffuse made")
    try:
        yield from imageio_ffmpeg.read_frames(_named(path), output_params=list(output))
    except (OSError, RuntimeError) as error:
        raise MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made") from error


def _ffmpeg(path: Path, *output: str) -> bytes:
    import imageio_ffmpeg

    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give a video that diffuse made")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", _named(path), *output, "-"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=True)
    except subprocess.SubprocessError as error:
        raise MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made") from error
    return done.stdout


def _named(path: Path) -> str:
    """A name that ffmpeg takes for a file, and not for an option, a protocol or a pattern."""
    return f"file:{path.absolute()}"
