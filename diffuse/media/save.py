"""Saves the frames of a result in a file, with the record inside."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.errors import MediaError
from diffuse.media.files import check_name, write_new_file, write_new_folder
from diffuse.media.formats import CLIP_FORMATS, FRAMES, STILL_FORMATS, clip_format, names_in_words, output_format
from diffuse.media.video_files import Clip, check_ffmpeg, write_frames
from diffuse.schema import ImageFormat, OutputConfig

log = logging.getLogger(__name__)


def save_media(
    frames: np.ndarray,
    folder: Path,
    stem: str,
    *,
    format: ImageFormat | str = ImageFormat.png,
    quality: int = 95,
    record: Mapping[str, Any],
    parameters: str = "",
    fps: float | None = None,
    sound: np.ndarray | None = None,
    sample_rate: int | None = None,
) -> Path:
    """Writes one result with its record, and returns the path.

    The file appears under its name complete and on disk. An existing file is never overwritten: `_1`, `_2` and so on
    are appended to the name, also when several processes save at once.

    Args:
        frames: uint8 RGB `[F, H, W, 3]`; an image is one frame.
        format: a name in the table of formats (`media.formats`).
        quality: 1 to 100, of the formats that are lossy.
        parameters: the text that image viewers show, see `media.parameters`.
        fps: frames a second of a film; None for an image.
        sound: float32 `[C, S]` from -1 to 1, or None.
        sample_rate: samples of sound a second.

    Raises:
        MediaError: the name, the format or the quality cannot be used, or the format cannot hold the result.
        RunError: the file could not be written, for instance because the disk is full; nothing of it is left.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames are uint8 [F, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    stem = check_name(stem)
    check_quality(quality)
    if fps is None:
        return _save_image(frames, folder, stem, format, quality, record, parameters, sound)
    return _save_clip(Clip(frames, fps, sound, sample_rate), folder, stem, format, quality, record, parameters)


def _save_image(
    frames: np.ndarray,
    folder: Path,
    stem: str,
    format: ImageFormat | str,
    quality: int,
    record: Mapping[str, Any],
    parameters: str,
    sound: np.ndarray | None,
) -> Path:
    row = output_format(format)
    if len(frames) != 1 or sound is not None:
        content = f"{len(frames)} frames{'' if sound is None else ' and sound'}"
        raise MediaError(f"output.format={row.name} holds one frame and no sound, not {content} without a rate")
    _check_sides(frames, row.name, row.max_side, "png")
    return write_new_file(row.encode(frames[0], record, parameters, quality), folder, stem, row.name)


def _save_clip(
    clip: Clip,
    folder: Path,
    stem: str,
    format: ImageFormat | str,
    quality: int,
    record: Mapping[str, Any],
    parameters: str,
) -> Path:
    """Saves a film. Where the format has no sound, the film loses it, and that is said."""
    if not len(clip.frames):
        raise MediaError("a film has at least one frame")
    row = clip_format(format)
    check_ffmpeg()
    if row is None:
        return write_new_folder(lambda place: write_frames(clip, place, record, parameters), folder, stem)
    if clip.sound is None and not row.holds_frames:
        choices = ", ".join(each.name for each in CLIP_FORMATS if each.holds_frames)
        raise MediaError(f"output.format={row.name} holds sound, and this result has none; choose one of {choices}")
    _check_sides(clip.frames, row.name, row.max_side, FRAMES)
    if clip.sound is not None and not row.holds_sound:
        choices = names_in_words([each.name for each in CLIP_FORMATS if each.holds_sound])
        log.warning("output.format=%s has no sound, and that of this film is left out; use %s", row.name, choices)
    write = row.write
    return write_new_file(lambda path: write(clip, path, record, parameters, quality), folder, stem, row.name)


def _check_sides(frames: np.ndarray, name: str, most: int | None, instead: str) -> None:
    height, width = frames.shape[1:3]
    if most and max(height, width) > most:
        raise MediaError(f"{name} holds at most {most} pixels a side, not {width} x {height}; use {instead}")


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
