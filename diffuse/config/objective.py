"""The objective of a sweeper: one metric of a run, and the reference that quality is measured against.

No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from diffuse.config.inputs import check_file_name
from diffuse.config.mistakes import suggestion
from diffuse.errors import ConfigError
from diffuse.media.formats import is_video
from diffuse.media.images import InputImage, InputImageCache
from diffuse.media.pixels import psnr_of_error, squared_error
from diffuse.media.video import Video
from diffuse.paths import user_path
from diffuse.schema import ObjectiveConfig

PSNR = "quality/psnr"
METRICS = (
    PSNR,
    *(f"time/{name}_s" for name in ("load", "encode", "denoise", "decode", "total")),
    *(f"memory/{name}" for name in ("peak_gib", "rss_peak_gib")),
)
Reference: TypeAlias = InputImage | Video
"""What quality is measured against. The frames of a film are read when they are compared."""

_EQUAL = 100.0  # decibels, for equal pixels: a sweeper cannot compute with infinity


def read_reference(cfg: ObjectiveConfig, reader: InputImageCache) -> Reference | None:
    """Reads the reference image by `reader`, or opens the reference film; None where there is none.

    Raises:
        ConfigError: `objective.metric` is no metric of a run, or needs a reference that is not given.
        MediaError: the reference is not there, or neither picture nor film.
    """
    if cfg.metric is not None and cfg.metric not in METRICS:
        near = suggestion(cfg.metric, METRICS, f"there are {', '.join(METRICS)}")
        raise ConfigError(f"objective.metric={cfg.metric}: a run has no such metric{near}")
    if cfg.reference is None:
        if cfg.metric == PSNR:
            raise ConfigError(f"objective.metric={PSNR}: compares with a picture or film; add objective.reference=FILE")
        return None
    check_file_name("objective.reference", cfg.reference)
    path = user_path(cfg.reference, "objective.reference")
    film = Video.open(path) if is_video(path) else None
    if film is None or film.is_picture:
        return reader.image(cfg.reference, "objective.reference")
    return film


def check_reference(reference: Reference | None, width: int, height: int, *, is_film: bool) -> None:
    """Checks that films, or images, of `width` and `height` pixels can be compared with the reference.

    Raises:
        ConfigError: they cannot.
    """
    if reference is None:
        return
    kinds = "picture", "film"
    theirs = kinds[isinstance(reference, Video)]
    if theirs != kinds[is_film]:
        raise ConfigError(f"objective.reference: is a {theirs}, and a {kinds[is_film]} is made; take one of those")
    if reference.size != (width, height):
        has = "{} x {}".format(*reference.size)
        raise ConfigError(
            f"objective.reference: is {has} pixels and the {theirs} {width} x {height}; take one of its size"
        )


def reference_quality(results: Iterable[Iterable[np.ndarray]], reference: Reference | None) -> dict[str, float]:
    """Returns by metric how near results are to the reference: their mean PSNR in decibels.

    Args:
        results: the frames of each, uint8 `[H, W, 3]`. Those of films are compared one by one, over the shorter length.
    """
    if reference is None:
        return {}
    values = []
    for frames in results:
        theirs = reference.each_frame() if isinstance(reference, Video) else [reference.pixels]
        errors = [squared_error(*pair) for pair in zip(frames, theirs, strict=False)]
        values.append(min(_EQUAL, psnr_of_error(math.fsum(errors) / len(errors))))
    return {PSNR: math.fsum(values) / len(values)}


def objective_value(cfg: ObjectiveConfig, metrics: Mapping[str, float]) -> float | None:
    """Returns the metric that the sweeper optimizes, of a run with these metrics; None where it optimizes nothing."""
    return None if cfg.metric is None else float(metrics[cfg.metric])
