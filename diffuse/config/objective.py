"""What a run is worth to a sweeper that looks for the best settings: one of its metrics, as a number. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from diffuse.config.compose import nearest
from diffuse.errors import ConfigError
from diffuse.media.images import InputImage, InputImageCache
from diffuse.media.pixels import psnr
from diffuse.schema import ObjectiveConfig

PSNR = "quality/psnr"
METRICS = (
    PSNR,
    *(f"time/{name}_s" for name in ("load", "encode", "denoise", "decode", "total")),
    *(f"memory/{name}" for name in ("peak_gib", "rss_peak_gib")),
)
_EQUAL = 100.0  # decibels, for pixels that are the same: a sweeper cannot reckon with infinity


def read(cfg: ObjectiveConfig, reader: InputImageCache) -> InputImage | None:
    """The picture to come near to, if there is one, by `reader`.

    Raises:
        ConfigError: `objective.metric` is no metric of a run, or needs a reference that is not given.
        MediaError: the reference is not there, or no picture.
    """
    if cfg.metric is not None and cfg.metric not in METRICS:
        near = nearest(cfg.metric, METRICS, f"there are {', '.join(METRICS)}")
        raise ConfigError(f"objective.metric={cfg.metric}: a run has no such metric{near}")
    if cfg.reference is None:
        if cfg.metric == PSNR:
            raise ConfigError(f"objective.metric={PSNR}: compares with a picture; add objective.reference=FILE")
        return None
    return reader.image(cfg.reference, "objective.reference")


def check_size(reference: InputImage | None, width: int, height: int) -> None:
    """Raises ConfigError where the pictures, of `width` and `height` pixels, cannot be compared with the reference."""
    if reference is not None and reference.size != (width, height):
        has = "{} x {}".format(*reference.size)
        raise ConfigError(
            f"objective.reference: is {has} pixels and the picture {width} x {height}; take one of its size"
        )


def quality(images: np.ndarray, reference: InputImage | None) -> dict[str, float]:
    """By metric, how near `images`, uint8 `[N, H, W, 3]`, are to the reference: their mean PSNR, in decibels."""
    if reference is None:
        return {}
    return {PSNR: math.fsum(min(_EQUAL, psnr(image, reference.pixels)) for image in images) / len(images)}


def value(cfg: ObjectiveConfig, metrics: Mapping[str, float]) -> float | None:
    """What Hydra is to be given for a run that has these metrics; None where nothing is looked for."""
    return None if cfg.metric is None else float(metrics[cfg.metric])
