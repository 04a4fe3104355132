"""A picture after H.264: near the original for a small rate factor, further for a large one, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.compression import compress_picture


def scene(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def test_a_larger_factor_loses_more() -> None:
    pixels = scene(97, 64)
    lost = [np.abs(compress_picture(pixels, crf).astype(int) - pixels[:, :96]).mean() for crf in (5, 33, 51)]
    assert 0 < lost[0] < lost[1] < lost[2] and lost[0] < 10
    assert np.array_equal(compress_picture(pixels, 33), compress_picture(pixels, 33))


def test_a_picture_too_small_to_compress_is_refused() -> None:
    with pytest.raises(MediaError, match="input_crf=0"):
        compress_picture(np.zeros((1, 4, 3), np.uint8), 33)
