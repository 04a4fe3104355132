"""The table of media formats: for each, its files, its writer, its reader, and its limits.

Everything else asks this table. The names that `output.format` may have stand in `schema.OutputFormat`; a test holds
them to the rows that have a writer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.encoders import encode_jpg, encode_png, encode_tiff, encode_webp
from diffuse.media.ffmpeg import ffmpeg_program
from diffuse.media.metadata import exif_record, png_record
from diffuse.media.video import avif_description, gif_comment, is_frames_folder, video_comment
from diffuse.media.video_files import Clip, write_avif, write_gif, write_mp4, write_wav, write_webm, write_webp
from diffuse.schema import OutputFormat

# From pixels uint8 RGB `[H, W, 3]`, the record, the line of parameters and the quality to the bytes of a file.
Encoder: TypeAlias = Callable[[np.ndarray, Mapping[str, Any], str, int], bytes]
# Writes a film to a path, with the record, the line of parameters and the quality.
ClipWriter: TypeAlias = Callable[[Clip, Path, Mapping[str, Any], str, int], None]


@dataclass(frozen=True)
class MediaFormat:
    """A kind of file that holds media with their record."""

    name: str
    """The extension of its files, and the name in `output.format`."""
    label: str
    """How messages call it."""
    suffixes: tuple[str, ...]
    """Suffixes of its files in lower case, the one that is written first."""


@dataclass(frozen=True)
class StillFormat(MediaFormat):
    """A format whose files hold one frame and no sound."""

    pillow: str
    """Its name in Pillow."""
    encode: Encoder
    record_text: Callable[[Image.Image], Any]
    """Returns the text of the record in an open file."""
    lossless: bool = False
    max_side: int | None = None
    """Pixels; None where the limit is beyond any image."""
    embed_type: str | None = None
    """The MIME type under which a page carries a file as it is; None where a smaller copy shows the same pixels, or
    browsers do not show the format."""


@dataclass(frozen=True)
class VideoFormat(MediaFormat):
    """A format whose files hold several frames, or sound alone."""

    magic: tuple[int, bytes]
    """The offset and the bytes by which a file is recognised."""
    record_text: Callable[[Path], bytes]
    """Returns the text of the record in a file, empty if there is none."""
    has_frames: bool = True
    """False where its files hold sound alone."""
    embed_type: str | None = None
    """As of `StillFormat`. A page carries no GIF and no AVIF, because they cannot be paused."""


STILL_FORMATS = (
    StillFormat("png", "PNG", (".png",), "PNG", encode_png, png_record, lossless=True),
    StillFormat(
        "jpg", "JPG", (".jpg", ".jpeg"), "JPEG", encode_jpg, exif_record, max_side=65535, embed_type="image/jpeg"
    ),
    StillFormat("webp", "WebP", (".webp",), "WEBP", encode_webp, exif_record, max_side=16383, embed_type="image/webp"),
    StillFormat("tiff", "TIFF", (".tiff", ".tif"), "TIFF", encode_tiff, exif_record, lossless=True),
)
VIDEO_FORMATS = (
    VideoFormat("mp4", "MP4", (".mp4",), (4, b"ftyp"), video_comment, embed_type="video/mp4"),
    VideoFormat("webm", "WebM", (".webm",), (0, b"\x1a\x45\xdf\xa3"), video_comment, embed_type="video/webm"),
    VideoFormat("gif", "GIF", (".gif",), (0, b"GIF8"), gif_comment),
    VideoFormat("avif", "AVIF", (".avif",), (4, b"ftyp"), avif_description),
    VideoFormat("wav", "WAV", (".wav",), (8, b"WAVE"), video_comment, has_frames=False),
)
FORMATS: tuple[StillFormat | VideoFormat, ...] = (*STILL_FORMATS, *VIDEO_FORMATS)


@dataclass(frozen=True)
class ClipFormat:
    """A way to write a film: a file of several frames and of sound, or of sound alone."""

    name: str
    """The extension of its files, and the name in `output.format`."""
    write: ClipWriter
    holds_sound: bool
    holds_frames: bool = True
    has_quality: bool = True
    max_side: int | None = None
    """Pixels; None where the limit is beyond any film."""


FRAMES = "frames"  # in `output.format`: a folder of PNGs, and the sound beside them
CLIP_FORMATS = (
    ClipFormat("mp4", write_mp4, holds_sound=True, max_side=16384),
    ClipFormat("webm", write_webm, holds_sound=True, max_side=65535),
    ClipFormat("gif", write_gif, holds_sound=False, has_quality=False, max_side=65535),
    ClipFormat("webp", write_webp, holds_sound=False, max_side=16383),
    ClipFormat("avif", write_avif, holds_sound=False, max_side=65535),
    ClipFormat("wav", write_wav, holds_sound=True, holds_frames=False, has_quality=False),
)
_FILM_NAMES = (*(row.name for row in CLIP_FORMATS), FRAMES)

PILLOW_FORMATS = tuple(row.pillow for row in STILL_FORMATS)
"""The formats that Pillow may try on an image that diffuse saved."""
OUTPUT_SUFFIXES = tuple(f".{row.name}" for row in (*STILL_FORMATS, *CLIP_FORMATS))
"""The suffixes of files that diffuse writes."""
STILL_SUFFIXES = tuple(suffix for row in STILL_FORMATS for suffix in row.suffixes)


def format_of(path: Path) -> StillFormat | VideoFormat | None:
    """Returns the format that a file's suffix names, None for any other suffix, as that of a folder of frames."""
    suffix = path.suffix.lower()
    return next((row for row in FORMATS if suffix in row.suffixes), None)


def is_video(path: Path) -> bool:
    """Returns whether a file is a video by its suffix, or is a WebP that moves, or a folder of frames."""
    if is_frames_folder(path):
        return True
    row = format_of(path)
    if isinstance(row, VideoFormat):
        return row.has_frames
    return row is not None and row.name == "webp" and _is_animated(path)


def _is_animated(path: Path) -> bool:
    """Returns whether a WebP has the flag of an animation. One that cannot be read has not."""
    try:
        with open(path, "rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return head[12:16] == b"VP8X" and bool(head[20] & 0x02)


def is_still(path: Path) -> bool:
    """Returns whether a file holds one picture: its suffix is not of films or sound, and it is no WebP that moves."""
    return not isinstance(format_of(path), VideoFormat) and not is_video(path)


def is_lossless(path: Path) -> bool:
    """Returns whether a file's suffix names a format that keeps every pixel as it was saved, or it is a folder of
    frames."""
    row = format_of(path)
    return is_frames_folder(path) or (isinstance(row, StillFormat) and row.lossless)


def embed_type(path: Path) -> str | None:
    """Returns the MIME type under which a page carries the file as it is, None if it carries a copy."""
    row = format_of(path)
    if row is None or (isinstance(row, StillFormat) and is_video(path)):
        return None
    return row.embed_type


def output_format(name: OutputFormat | str) -> StillFormat:
    """Returns the format of pictures that `output.format` names.

    Raises:
        MediaError: there is no such format, or it is of films alone.
    """
    text = _text(name)
    for row in STILL_FORMATS:
        if row.name == text:
            return row
    choices = ", ".join(row.name for row in STILL_FORMATS)
    fault = "is of films, and this is a picture" if text in _FILM_NAMES else "is not a format"
    raise MediaError(f"output.format={text} {fault}; choose one of {choices}")


def clip_format(name: OutputFormat | str) -> ClipFormat | None:
    """Returns the way to write a film that `output.format` names; None for `frames`, a folder of pictures.

    Raises:
        MediaError: films are not written so.
    """
    text = _text(name)
    if text == FRAMES:
        return None
    for row in CLIP_FORMATS:
        if row.name == text:
            return row
    raise MediaError(f"output.format={text} holds no film; choose one of {', '.join(_FILM_NAMES)}")


def chosen_format(name: OutputFormat | str | None, *, is_film: bool) -> OutputFormat:
    """Returns the format that `output.format` names; where it is null, MP4 for a film and PNG for a picture.

    Raises:
        MediaError: there is no such format, or it is not for that.
    """
    if name is None:
        return OutputFormat.mp4 if is_film else OutputFormat.png
    (clip_format if is_film else output_format)(name)
    return OutputFormat(_text(name))


def check_film_output(format: OutputFormat, *, has_sound: bool) -> None:
    """Checks that films can be written in `format`, one of those for films.

    Raises:
        MediaError: there is no ffmpeg, or the format holds sound alone and there is none.
    """
    ffmpeg_program()
    row = clip_format(format)
    if row is not None and not row.holds_frames and not has_sound:
        choices = ", ".join(each.name for each in CLIP_FORMATS if each.holds_frames)
        raise MediaError(f"output.format={row.name} holds sound, and this film has none; choose one of {choices}")


def quality_formats(*, is_film: bool) -> list[str]:
    """Returns the names of the formats in which a film, or a picture, has a quality."""
    if is_film:
        return [row.name for row in CLIP_FORMATS if row.has_quality]
    return [row.name for row in STILL_FORMATS if not row.lossless]


def _text(name: OutputFormat | str) -> str:
    return name.value if isinstance(name, OutputFormat) else name


def names_in_words(labels: list[str]) -> str:
    """Returns `A, B or C` for messages."""
    return " or ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
