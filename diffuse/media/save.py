"""Saves the frames of a result in a file, with the record inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.errors import MediaError
from diffuse.media.files import check_name, write_new_file
from diffuse.media.formats import STILL_FORMATS, output_format
from diffuse.schema import ImageFormat, OutputConfig


def save_media(
    frames: np.ndarray,
    folder: Path,
    stem: str,
    *,
    format: ImageFormat | str = ImageFormat.png,
    quality: int = 95,
    record: Mapping[str, Any],
    parameters: str = "",
    sound: np.ndarray | None = None,
) -> Path:
    """Writes one result with its record, and returns the path.

    The file appears under its name complete and on disk. An existing file is never overwritten: `_1`, `_2` and so on
    are appended to the name, also when several processes save at once.

    Args:
        frames: uint8 RGB `[F, H, W, 3]`; an image is one frame.
        format: a name in the table of formats (`media.formats`).
        quality: 1 to 100, of the formats that are lossy.
        parameters: the text that image viewers show, see `media.parameters`.
        sound: `[C, S]`, or None. No format that is written holds sound yet.

    Raises:
        MediaError: the name, the format or the quality cannot be used, or the format cannot hold the result.
        RunError: the file could not be written, for instance because the disk is full; nothing of it is left.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames are uint8 [F, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    stem = check_name(stem)
    row = output_format(format)
    check_quality(quality)
    if len(frames) != 1 or sound is not None:
        content = f"{len(frames)} frames{'' if sound is None else ' and sound'}"
        raise MediaError(f"output.format={row.name} holds one frame and no sound, not {content}; none holds them yet")
    height, width = frames.shape[1:3]
    if row.max_side and max(height, width) > row.max_side:
        raise MediaError(f"{row.name} holds at most {row.max_side} pixels a side, not {width} x {height}; use png")
    return write_new_file(row.encode(frames[0], record, parameters, quality), folder, stem, row.name)


def output_note(output: OutputConfig) -> str | None:
    """Returns a line on a setting that has no effect: a quality for a format that loses nothing; None otherwise."""
    row = output_format(output.format)
    if not row.lossless or output.quality == OutputConfig.quality:
        return None
    lossy = " or ".join(each.name for each in STILL_FORMATS if not each.lossless)
    return f"output.quality={output.quality}: has no effect with output.format={row.name}; {lossy} has a quality"


def check_quality(quality: int) -> None:
    """Checks that `quality` is a whole number from 1 to 100.

    Raises:
        MediaError: it is not.
    """
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise MediaError(f"output.quality={quality} must be a whole number from 1 to 100")
