"""Saves the frames of a result in a file, with the record inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.errors import MediaError
from diffuse.media.files import check_name, write_new_file, write_new_folder
from diffuse.media.formats import (
    CLIP_FORMATS,
    FRAMES,
    check_film_output,
    chosen_format,
    clip_format,
    names_in_words,
    output_format,
    quality_formats,
)
from diffuse.media.video_files import Clip, write_frames
from diffuse.schema import OutputConfig, OutputFormat


def save_media(
    frames: np.ndarray,
    folder: Path,
    stem: str,
    *,
    format: OutputFormat | str | None = None,
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
        format: a name in the table of formats (`media.formats`); None is MP4 for a film, and PNG for an image.
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
    format = chosen_format(format, is_film=fps is not None)
    if fps is None:
        return _save_image(frames, folder, stem, format, quality, record, parameters, sound)
    return _save_clip(Clip(frames, fps, sound, sample_rate), folder, stem, format, quality, record, parameters)


def _save_image(
    frames: np.ndarray,
    folder: Path,
    stem: str,
    format: OutputFormat,
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
    format: OutputFormat,
    quality: int,
    record: Mapping[str, Any],
    parameters: str,
) -> Path:
    """Saves a film. Where the format has no sound, the film loses it; `sound_notes` says so."""
    if not len(clip.frames):
        raise MediaError("a film has at least one frame")
    check_film_output(format, has_sound=clip.sound is not None)
    row = clip_format(format)
    if row is None:
        return write_new_folder(lambda place: write_frames(clip, place, record, parameters), folder, stem)
    _check_sides(clip.frames, row.name, row.max_side, FRAMES)
    write = row.write
    return write_new_file(lambda path: write(clip, path, record, parameters, quality), folder, stem, row.name)


def _check_sides(frames: np.ndarray, name: str, most: int | None, instead: str) -> None:
    height, width = frames.shape[1:3]
    if most and max(height, width) > most:
        raise MediaError(f"{name} holds at most {most} pixels a side, not {width} x {height}; use {instead}")


def output_notes(output: OutputConfig, *, is_film: bool, has_sound: bool) -> list[str]:
    """Returns a line each on what `output.format` cannot hold: a quality where nothing is lost, and sound."""
    format = chosen_format(output.format, is_film=is_film)
    notes = sound_notes(format, has_sound=has_sound)
    lossy = quality_formats(is_film=is_film)
    if output.quality != OutputConfig.quality and format.name not in lossy:
        choices = names_in_words(lossy)
        notes.append(
            f"output.quality={output.quality}: has no effect with output.format={format.name}; {choices} has a quality"
        )
    return notes


def sound_notes(format: OutputFormat, *, has_sound: bool) -> list[str]:
    """Returns a line that a film loses its sound in `format`, where it has some and does."""
    row = clip_format(format) if has_sound else None
    if row is None or row.holds_sound:
        return []
    choices = names_in_words([each.name for each in CLIP_FORMATS if each.holds_sound])
    return [f"output.format={row.name} has no sound, and that of the film is left out; use {choices}"]


def check_quality(quality: int) -> None:
    """Checks that `quality` is a whole number from 1 to 100.

    Raises:
        MediaError: it is not.
    """
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise MediaError(f"output.quality={quality} must be a whole number from 1 to 100")
