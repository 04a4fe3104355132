"""The pixels of a cell."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

from diffuse.compare.cells import Cell
from diffuse.errors import MediaError
from diffuse.media.formats import PILLOW_FORMATS
from diffuse.media.video import Video

FRAMES = 8  # of a video: what its strip shows, and what is compared


def read(cell: Cell) -> np.ndarray:
    """uint8 RGB `[H, W, 3]` of a picture, `[F, H, W, 3]` of a video.

    Raises MediaError for a file that has gone or is damaged.
    """
    if cell.is_video:
        return Video.open(cell.path).frames(FRAMES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(cell.path, formats=PILLOW_FORMATS) as picture:
                return np.asarray(picture.convert("RGB"))
    except Exception as error:  # a decoder says in many ways that what it reads makes no sense
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{cell.path} cannot be read: {reason}; leave it out, or make it again") from error


def first(pixels: np.ndarray) -> np.ndarray:
    """The picture itself, or a video's first frame."""
    return pixels if pixels.ndim == 3 else pixels[0]
