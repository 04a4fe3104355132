"""Digests of pixels, which records hold, and measures of how far images are apart."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from diffuse.media.pixels import largest_difference, pixels_sha256, psnr


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)


def test_the_digest_is_of_the_shape_and_the_bytes() -> None:
    (image,) = frames(1)
    assert pixels_sha256(image) == hashlib.sha256(b"4x6x3\0" + image.tobytes()).hexdigest()
    assert pixels_sha256(np.asfortranarray(image)) == pixels_sha256(image)


def test_one_frame_has_the_digest_of_the_image() -> None:
    """So that records from before there were frames agree with those after."""
    one, several = frames(1), frames(3)
    assert pixels_sha256(one) == pixels_sha256(one[0])
    assert pixels_sha256(several) == hashlib.sha256(b"3x4x6x3\0" + several.tobytes()).hexdigest()
    assert len({pixels_sha256(several), pixels_sha256(several[:1]), pixels_sha256(several[::-1])}) == 3


def test_measures_of_difference() -> None:
    ours, theirs = np.full((2, 2, 3), 250, np.uint8), np.full((2, 2, 3), 250, np.uint8)
    assert (largest_difference(ours, theirs), psnr(ours, theirs)) == (0, math.inf)
    theirs[0, 0, 0] = 0  # uint8 must not wrap around
    assert largest_difference(ours, theirs) == largest_difference(theirs, ours) == 250
    assert psnr(ours, theirs) == pytest.approx(10 * math.log10(255**2 * 12 / 250**2))


def test_digests_differ_in_shape_as_in_pixels() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    others = [image.reshape(2, 8, 3), image.reshape(8, 2, 3), image[::-1], image ^ 1]
    assert len({pixels_sha256(other) for other in [image, *others]}) == 5
    assert pixels_sha256(image[::-1][::-1]) == pixels_sha256(image)
