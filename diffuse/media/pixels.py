"""Decoded pixels: their digest, and how far two images are apart."""

from __future__ import annotations

import hashlib
import math

import numpy as np


def pixels_sha256(frames: np.ndarray) -> str:
    """Returns the SHA-256 of an image `[H, W, 3]` or of frames `[F, H, W, 3]`, uint8 RGB.

    It is taken of the shape as text (`64x48x3`, rows first), a zero byte, and the RGB bytes. One frame has the digest
    of the image that it is.
    """
    shape = frames.shape[1:] if frames.ndim == 4 and len(frames) == 1 else frames.shape
    text = "x".join(map(str, shape))
    return hashlib.sha256(text.encode() + b"\0" + np.ascontiguousarray(frames).tobytes()).hexdigest()


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Returns the largest difference between two uint8 arrays of one shape, `[H, W, 3]` for instance, from 0 to 255."""
    return int(np.abs(ours.astype(np.int16) - theirs).max())


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in decibels of two uint8 arrays of one shape, `[H, W, 3]` for instance.

    It is infinite where they are equal.
    """
    error = np.mean(np.square(ours.astype(np.int32) - theirs), dtype=np.float64)
    return math.inf if error == 0 else 10 * math.log10(255**2 / float(error))
