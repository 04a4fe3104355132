"""The objective of a sweeper: one metric of a run, and the reference image that quality is measured against.

No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from diffuse.config.inputs import check_file_name
from diffuse.config.mistakes import suggestion
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
_EQUAL = 100.0  # decibels, for equal pixels: a sweeper cannot compute with infinity


def read_reference(cfg: ObjectiveConfig, reader: InputImageCache) -> InputImage | None:
    """Reads the reference image by `reader`; None where there is none.

    Raises:
        ConfigError: `objective.metric` is no metric of a run, or needs a reference that is not given.
        MediaError: the reference is not there, or no picture.
    """
    if cfg.metric is not None and cfg.metric not in METRICS:
        near = suggestion(cfg.metric, METRICS, f"there are {', '.join(METRICS)}")
        raise ConfigError(f"objective.metric={cfg.metric}: a run has no such metric{near}")
    if cfg.reference is None:
        if cfg.metric == PSNR:
            raise ConfigError(f"objective.metric={PSNR}: compares with a picture; add objective.reference=FILE")
        return None
    check_file_name("objective.reference", cfg.reference)
    return reader.image(cfg.reference, "objective.reference")


def check_reference_size(reference: InputImage | None, width: int, height: int) -> None:
    """Raises ConfigError where images of `width` and `height` pixels cannot be compared with the reference."""
    if reference is not None and reference.size != (width, height):
        has = "{} x {}".format(*reference.size)
        raise ConfigError(
            f"objective.reference: is {has} pixels and the picture {width} x {height}; take one of its size"
        )


def reference_quality(images: np.ndarray, reference: InputImage | None) -> dict[str, float]:
    """Returns by metric how near `images`, uint8 `[N, H, W, 3]`, are to the reference: their mean PSNR in decibels."""
    if reference is None:
        return {}
    return {PSNR: math.fsum(min(_EQUAL, psnr(image, reference.pixels)) for image in images) / len(images)}


def objective_value(cfg: ObjectiveConfig, metrics: Mapping[str, float]) -> float | None:
    """Returns the metric that the sweeper optimizes, of a run with these metrics; None where it optimizes nothing."""
    return None if cfg.metric is None else float(metrics[cfg.metric])
