"""Decoded pixels: their digest, how far two pictures or films are apart, and a film as one picture.

A film is taken frame by frame, so that it stands in memory once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np


def pixels_sha256(frames: np.ndarray) -> str:
    """Returns the SHA-256 of an image `[H, W, 3]` or of frames `[F, H, W, 3]`, uint8 RGB.

    It is taken of the shape as text (`64x48x3`, rows first), a zero byte, and the RGB bytes. One frame has the digest
    of the image that it is.
    """
    return frames_sha256(frames.shape, _each(frames))


def frames_sha256(shape: Sequence[int], frames: Iterable[np.ndarray]) -> str:
    """Returns `pixels_sha256` of frames `[H, W, 3]` that come one at a time.

    Args:
        shape: of all of them, `[F, H, W, 3]`, or `[H, W, 3]` of an image.
    """
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    digest = hashlib.sha256("x".join(map(str, shape)).encode() + b"\0")
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Returns the largest difference between two uint8 arrays of one shape, `[H, W, 3]` for instance, from 0 to 255."""
    return max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in zip(_each(ours), _each(theirs), strict=True))


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in decibels of two uint8 arrays of one shape, `[H, W, 3]` for instance.

    It is infinite where they are equal.
    """
    errors = [squared_error(a, b) for a, b in zip(_each(ours), _each(theirs), strict=True)]
    return psnr_of_error(math.fsum(errors) / len(errors))


def squared_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the mean square of the difference between two uint8 arrays of one shape, `[H, W, 3]` for instance."""
    return float(np.mean(np.square(ours.astype(np.int32) - theirs), dtype=np.float64))


def psnr_of_error(error: float) -> float:
    """Returns the peak signal-to-noise ratio in decibels of a mean square error in levels; infinite where it is 0."""
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def frame_strip(frames: np.ndarray) -> np.ndarray:
    """Lays frames `[F, H, W, 3]` side by side: `[H, F * W, 3]`."""
    return np.concatenate(list(frames), axis=1)


def _each(frames: np.ndarray) -> np.ndarray:
    """Returns pixels `[..., H, W, 3]` as a series of images `[H, W, 3]`, without a copy where they lie in order."""
    return frames.reshape(-1, *frames.shape[-3:]) if frames.ndim > 3 else frames[None]
