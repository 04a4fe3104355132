"""The frames of a cell, whether it is an image or a video, and the sound of a video."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffuse.compare.cells import Cell
from diffuse.errors import MediaError
from diffuse.media.files import pillow_warnings
from diffuse.media.formats import PILLOW_FORMATS
from diffuse.media.video import Video

FRAMES = 8  # of a video, spread over its length: for the strip and for the metrics


def read_frames(cell: Cell) -> np.ndarray:
    """Reads the frames `[F, H, W, 3]`, uint8 RGB: one of an image, at most FRAMES of a video.

    Raises:
        MediaError: the file has gone or is damaged.
    """
    if cell.is_video:
        return Video.open(cell.path).frames(FRAMES)
    try:
        with (
            pillow_warnings("error", Image.DecompressionBombWarning),
            Image.open(cell.path, formats=PILLOW_FORMATS) as image,
        ):
            return np.asarray(image.convert("RGB"))[None]
    except Exception as error:  # a decoder says in many ways that what it reads makes no sense
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{cell.path} cannot be read: {reason}; leave it out, or make it again") from error


def read_sound_of(cell: Cell) -> tuple[np.ndarray, int] | None:
    """Reads the sound of a cell, float32 `[C, S]`, and its samples a second; None where it has none.

    Raises:
        MediaError: the file has gone or is damaged.
    """
    return Video.open(cell.path).sound() if cell.is_video else None
