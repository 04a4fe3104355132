"""Metrics of the difference between two images, uint8 RGB `[H, W, 3]`, or two videos `[F, H, W, 3]`, by frame; and
between their sounds, float32 `[C, S]`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffuse.media.pixels import psnr

_WINDOW = 7  # pixels a side of SSIM's uniform window
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


@dataclass(frozen=True)
class Difference:
    """PSNR in decibels (infinite for equal pixels), SSIM (1 for equal), mean FLIP (0 for equal, up to 1), and the
    signal-to-noise ratio of the sound in decibels (infinite for equal samples)."""

    psnr: float
    ssim: float | None  # None where a side is shorter than SSIM's window
    flip: float
    sound_snr: float | None = None  # None where one has no sound, or it cannot be compared


def measure_difference(frames: np.ndarray, reference: np.ndarray) -> Difference | None:
    """Measures how far `[F, H, W, 3]` or `[H, W, 3]` is from its reference; None where their sizes differ."""
    if frames.shape[-3:] != reference.shape[-3:]:
        return None
    frames, references = (pixels.reshape(-1, *pixels.shape[-3:]) for pixels in (frames, reference))
    count = min(len(frames), len(references))  # two videos may be cut to a different length by a frame
    pairs = list(zip(frames[:count], references[:count], strict=True))
    similar = [ssim(*pair) for pair in pairs]
    return Difference(
        psnr(frames[:count], references[:count]),
        None if None in similar else math.fsum(value or 0.0 for value in similar) / count,
        math.fsum(flip(*pair) for pair in pairs) / count,
    )


def ssim(image: np.ndarray, reference: np.ndarray) -> float | None:
    """Returns the structural similarity of `[H, W, 3]`, the mean over channels.

    By Wang et al. 2004, doi:10.1109/TIP.2003.819861.

    Over a uniform window of 7 x 7 pixels with unbiased variances, as scikit-image's `structural_similarity` has it
    unless told otherwise. None where a side is shorter than the window.
    """
    if min(image.shape[:2]) < _WINDOW:
        return None
    a, b = image.astype(np.int32), reference.astype(np.int32)
    count = _WINDOW**2
    # Sums of whole numbers are exact; only the steps after them are rounded.
    sum_a, sum_b = _sums(a), _sums(b)
    squares, products = _sums(a * a + b * b), _sums(a * b)
    mean_a, mean_b = sum_a / count, sum_b / count
    product, square = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    covariance = (products - product * count) / (count - 1)
    variances = (squares - square * count) / (count - 1)
    similar = ((2 * product + _C1) * (2 * covariance + _C2)) / ((square + _C1) * (variances + _C2))
    return float(np.mean(similar, dtype=np.float64))


def _sums(values: np.ndarray) -> np.ndarray:
    """Returns the sums over the windows that lie wholly inside: `[H, W, 3]` -> `[H - 6, W - 6, 3]`."""
    for axis in (0, 1):
        length = values.shape[axis] - _WINDOW + 1
        windows = [values[(slice(None),) * axis + (slice(start, start + length),)] for start in range(_WINDOW)]
        total = windows[0].copy()
        for window in windows[1:]:
            total += window
        values = total
    return values


def flip(image: np.ndarray, reference: np.ndarray) -> float:
    """Returns the difference that an eye sees when it flips between two images `[H, W, 3]`: 0 for none, up to 1.

    By Andersson et al. 2020, doi:10.1145/3406183, at 67 pixels a degree: 70 cm from a 24-inch 4K screen.
    """
    import flip_evaluator

    ours, theirs = (pixels.astype(np.float32) / np.float32(255) for pixels in (image, reference))
    return float(flip_evaluator.evaluate(theirs, ours, "LDR", applyMagma=False)[1])
