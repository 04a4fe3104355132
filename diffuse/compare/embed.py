"""Copies of images and videos for the page: whole where their share of its size allows, otherwise smaller.

A page carries at most BUDGET bytes of media, however many cells there are, so that it can be moved and logged alone.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffuse.compare.cells import Cell
from diffuse.compare.pixels import read_frames
from diffuse.errors import MediaError
from diffuse.media.formats import embed_type
from diffuse.media.pixels import frame_strip
from diffuse.media.video import Video

BUDGET = 40_000_000  # bytes of all media; a third more as text

_LOSSLESS = 1.3  # bytes a pixel that a lossless copy of a photograph takes
_LOSSY = 0.5  # and one of high quality, at most
_QUALITY = 88
_SIDES = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48)  # pixels of the smaller copies
_FRAME = 128  # pixels: the longer side of a frame on a strip
_PREVIEWS = (480, 320, 192, 128)


@dataclass(frozen=True)
class MediaCopy:
    """The content of a file, or of a smaller copy, as the page carries it."""

    data: bytes
    mime: str
    width: int  # pixels, as embedded
    height: int
    exact: bool  # every pixel is the file's


@dataclass(frozen=True)
class CellMedia:
    """The copies of a cell in the page; none where not even the smallest fits its share."""

    width: int  # pixels of the file itself
    height: int
    still: MediaCopy | None  # the image, or a video's frame strip
    moving: MediaCopy | None = None
    has_sound: bool = False


def embed_cell(cell: Cell, share: int) -> CellMedia:
    """Returns the copies of a cell that together take at most `share` bytes."""
    frames = read_frames(cell)
    height, width = frames.shape[1:3]
    if not cell.is_video:
        return CellMedia(width, height, _whole(cell, frames[0], share) or _smaller(frames[0], share))
    video = Video.open(cell.path)
    strip = Image.fromarray(frame_strip(frames))
    strip.thumbnail((_FRAME * len(frames), _FRAME), Image.Resampling.LANCZOS)
    still = _smaller(np.asarray(strip), share // 3)
    return CellMedia(width, height, still, _moving(video, share - share // 3), video.has_sound)


def _whole(cell: Cell, pixels: np.ndarray, share: int) -> MediaCopy | None:
    """Returns the file itself where it is small already, or a lossless copy; None where neither fits."""
    height, width = pixels.shape[:2]
    mime = embed_type(cell.path)
    if mime and cell.path.stat().st_size <= share:
        return MediaCopy(cell.path.read_bytes(), mime, width, height, True)
    if not mime and width * height * _LOSSLESS <= share:
        data = _webp(Image.fromarray(pixels), lossless=True, method=2)
        if len(data) <= share:
            return MediaCopy(data, "image/webp", width, height, True)
    return None


def _smaller(pixels: np.ndarray, share: int) -> MediaCopy | None:
    """Returns the largest lossy copy of `[H, W, 3]` within `share` bytes."""
    height, width = pixels.shape[:2]
    for side in (max(width, height), *(side for side in _SIDES if side < max(width, height))):
        factor = side / max(width, height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        if size[0] * size[1] * 0.05 > share:
            continue  # hopeless, and the largest are the slowest to try
        image = Image.fromarray(pixels)
        if factor < 1:
            image = image.resize(size, Image.Resampling.LANCZOS)
        quality = _QUALITY if size[0] * size[1] * _LOSSY > 4096 else 80
        data = _webp(image, quality=quality, method=3)
        if len(data) <= share:
            return MediaCopy(data, "image/webp", *size, False)
    return None


def _moving(video: Video, share: int) -> MediaCopy | None:
    """Returns the file itself where it is small and can be paused, which a GIF cannot; otherwise a preview."""
    width, height = video.width, video.height
    mime = embed_type(video.path)
    if mime and video.path.stat().st_size <= share:
        return MediaCopy(video.path.read_bytes(), mime, width, height, True)
    for side in _PREVIEWS:
        try:
            data = video.preview(min(side, max(width, height)))
        except MediaError:
            return None
        if len(data) <= share:
            factor = min(1.0, side / max(width, height))
            return MediaCopy(data, "video/webm", round(width * factor), round(height * factor), False)
    return None


def _webp(image: Image.Image, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", **options)
    return out.getvalue()
