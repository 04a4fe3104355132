"""Clips that a film goes on from: the last frames of a file, of a folder of frames, or of an array in memory.

A file is read as a stream, from shortly before the frames that are wanted; only those are kept, resized.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.ffmpeg import ffmpeg_program, stream_frames
from diffuse.media.files import pillow_warnings
from diffuse.media.images import INPUT_FORMATS, MOST_PIXELS, resize_image
from diffuse.media.load import content_sha256
from diffuse.media.video import Video, is_frames_folder
from diffuse.paths import user_path
from diffuse.schema import Resize

_MOST_FPS = 1000  # of a film; see the field
_MARGIN = 1.0  # seconds that are read before the frames that are wanted: containers round
_SAME_RATE = 1e-3  # rates that differ by less are one rate: 29.97 and 30000 / 1001


@dataclass(frozen=True)
class InputClip:
    """A clip that a request goes on from, of which nothing but its sizes is read yet."""

    source: Video | np.ndarray  # uint8 `[F, H, W, 3]` in memory
    label: str  # how messages call it
    size: tuple[int, int]  # width and height in pixels
    fps: float | None  # None: as fast as the film
    sha256: str  # of the file; of a folder's files, see `content_sha256`; or of the bytes in memory
    _read: dict[tuple[Any, ...], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def in_memory(self) -> bool:
        """Tells whether there is no file."""
        return isinstance(self.source, np.ndarray)

    @property
    def nbytes(self) -> int:
        """The size of the frames that are kept."""
        return sum(frames.nbytes for frames in self._read.values())

    def differs_from(self, fps: float) -> bool:
        """Tells whether the clip has another number of frames a second."""
        return self.fps is not None and abs(self.fps / fps - 1) > _SAME_RATE

    def last_frames(self, count: int, fps: float, width: int, height: int, mode: Resize) -> np.ndarray:
        """Returns the last frames, uint8 `[F, height, width, 3]`, up to `count` of them, at `fps` frames a second.

        The last result is kept.

        Raises:
            MediaError: it is cut short or damaged, or a picture.
        """
        key = count, fps, width, height, mode
        if key not in self._read:
            rate = fps if self.differs_from(fps) else None
            frames = self._last(count, rate, lambda frame: resize_image(frame, width, height, mode))
            if len(frames) < 2 and count > 1:
                raise MediaError(f"{self.label}: holds one frame; give a picture as input_image=FILE")
            self._read.clear()
            self._read[key] = np.stack(frames)
        return self._read[key]

    def _last(self, count: int, fps: float | None, resize: Callable[[np.ndarray], np.ndarray]) -> deque[np.ndarray]:
        """Returns the last frames, each resized, `[H, W, 3]`; `fps` where it is not the clip's own."""
        if isinstance(self.source, np.ndarray):
            return deque(map(resize, self.source[-count:]), count)
        if not self.source.is_streamed:
            return deque(map(resize, self.source.last_frames(count, fps)), count)
        rate = fps or self.source.fps
        begin = max(self.source.seconds - count / rate - _MARGIN, 0.0)
        try:
            found = deque(map(resize, self._streamed(begin, fps)), count)
            if len(found) < count and begin:  # the container lasts longer than its frames, which are counted first
                total = sum(1 for _ in self._streamed(0.0, fps))
                wanted = islice(self._streamed(0.0, fps), max(total - count, 0), None)
                found = deque(map(resize, wanted), count)
        except MediaError as error:
            raise MediaError(f"{self.label}: is cut short or damaged; copy it again") from error
        return found

    def _streamed(self, begin: float, fps: float | None) -> Iterator[np.ndarray]:
        assert isinstance(self.source, Video)
        before = ["-ss", f"{begin:.6f}"] if begin else []
        after = ["-fps_mode", "cfr"] if fps is None else ["-vf", f"fps=fps={fps:.9f}"]
        return stream_frames(self.source.path, self.size, before=before, after=after)


def read_clip(source: str | np.ndarray, field: str = "input_video") -> InputClip:
    """Reads what a clip says of itself.

    Args:
        source: a file, a folder of frames, or an array `[F, H, W, 3]` of uint8.
        field: how messages call it.

    Raises:
        MediaError: there is no such file, or no film in it.
    """
    if not isinstance(source, str):
        return _from_memory(source, field)
    label = f"{field}={source}"
    path = user_path(source, field)
    _check_file(path, label)
    if not is_frames_folder(path):
        ffmpeg_program()
        _refuse_picture(path, label)
    try:
        video = Video.open(path)
    except (MediaError, KeyError, IndexError, ValueError) as error:  # of a file that has sound alone, in this library
        reason = "has no video stream that can be read: it is sound, no film, or cut short"
        raise MediaError(f"{label}: {reason}; give a film, such as an MP4") from error
    if video.width * video.height > MOST_PIXELS:
        raise MediaError(f"{label}: {video.width} x {video.height} pixels are too many; scale it down first")
    if not 0 < video.fps <= _MOST_FPS:
        raise MediaError(f"{label}: says that it has {video.fps:g} frames a second; save it with a rate that is usual")
    return InputClip(video, label, video.size, video.fps, content_sha256(path))


def _check_file(path: Path, label: str) -> None:
    try:
        if is_frames_folder(path):
            return
        if path.is_dir():
            raise MediaError(f"{label}: is a folder without frame_00000.png; give a film in it")
        if not path.exists():
            raise MediaError(f"{label}: there is no such file")
        if not path.is_file():
            raise MediaError(f"{label}: is no file; give a film")
        if not path.stat().st_size:
            raise MediaError(f"{label}: is empty; give a film, such as an MP4")
    except (OSError, ValueError) as error:
        raise MediaError(f"{label}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _refuse_picture(path: Path, label: str) -> None:
    try:
        with pillow_warnings("ignore"), Image.open(path, formats=INPUT_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
    except Exception:  # no picture, or one that is damaged
        return
    if frames == 1:
        raise MediaError(f"{label}: is a picture; give it as input_image=FILE, or a film")


def _from_memory(source: object, field: str) -> InputClip:
    if not isinstance(source, np.ndarray):
        raise MediaError(f"{field}: is of type {type(source).__name__}; give a path, or an array [F, H, W, 3]")
    if source.ndim != 4 or source.shape[3] != 3 or source.dtype != np.uint8 or not source.size:
        raise MediaError(f"{field}: is an array {list(source.shape)} of {source.dtype}; give [F, H, W, 3] of uint8")
    digest = hashlib.sha256(source.tobytes()).hexdigest()
    return InputClip(source, field, (source.shape[2], source.shape[1]), None, digest)
