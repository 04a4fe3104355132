"""Decoded pixels: their digest, and how far two pictures are apart."""

from __future__ import annotations

import hashlib
import math

import numpy as np


def pixels_sha256(image: np.ndarray) -> str:
    """SHA-256 of a picture's pixels: of its shape as text (`64x48x3`, rows first), a zero byte, and the RGB bytes."""
    shape = "x".join(map(str, image.shape))
    return hashlib.sha256(shape.encode() + b"\0" + np.ascontiguousarray(image).tobytes()).hexdigest()


def levels(ours: np.ndarray, theirs: np.ndarray) -> int:
    """The largest difference of two uint8 pictures of one shape, of 255."""
    return int(np.abs(ours.astype(np.int16) - theirs).max())


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels of two uint8 pictures of one shape; infinite where they are the same."""
    error = np.mean(np.square(ours.astype(np.int32) - theirs), dtype=np.float64)
    return math.inf if error == 0 else 10 * math.log10(255**2 / float(error))
