"""Reads back what diffuse saved: the record inside a file, and the digest of its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffuse.errors import MediaError
from diffuse.media.files import pillow_warnings, reason
from diffuse.media.formats import PILLOW_FORMATS, STILL_FORMATS, VideoFormat, format_of, names_in_words
from diffuse.media.metadata import parse_record
from diffuse.media.pixels import pixels_sha256
from diffuse.media.video import FIRST_FRAME, is_frames_folder

_BY_PILLOW = {row.pillow: row for row in STILL_FORMATS}


def read_record(path: Path) -> dict[str, Any]:
    """Returns the record inside an image or a film, which may be a folder of frames.

    It is data from a file: nothing in it has been checked.

    Raises:
        MediaError: there is no such file, or no record in it.
    """
    row = format_of(path)
    if is_frames_folder(path):
        path = path / FIRST_FRAME
    elif isinstance(row, VideoFormat):
        return parse_record(row.record_text(path), path)
    try:
        with _open(path) as image:
            text = _BY_PILLOW[str(image.format)].record_text(image)
    except UnidentifiedImageError:
        labels = names_in_words([still.label for still in STILL_FORMATS])
        raise MediaError(f"{path} is no {labels} picture, or is damaged; give one that diffuse made") from None
    except Exception as error:  # a decoder says in many ways that what it reads makes no sense
        raise MediaError(f"{path} cannot be read: {reason(error)}; give a picture that diffuse made") from error
    return parse_record(text, path)


def image_sha256(path: Path) -> str:
    """Returns `pixels_sha256` of the image `[H, W, 3]` in a file, which was RGB when it was saved.

    Raises:
        MediaError: there is no image in it that can be read to its end.
    """
    try:
        with _open(path) as image:
            return pixels_sha256(np.asarray(image.convert("RGB")))
    except Exception as error:  # as above
        raise MediaError(f"{path} cannot be read: {reason(error)}; it may be damaged") from error


def content_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes; of a folder, that of a line for each file in it, by name, but hidden ones.

    A line is the SHA-256 of the file in hexadecimal digits, two spaces, and its name, as `sha256sum` prints it.

    Raises:
        MediaError: it cannot be read.
    """
    try:
        if path.is_dir():
            files = sorted(each for each in path.iterdir() if not each.name.startswith("."))
            lines = [f"{content_sha256(each)}  {each.name}\n" for each in files]
            return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {reason(error)}; it may be damaged") from error


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Opens an image. Pillow reports odd data through Python's warnings; a file is read, or refused in one line."""
    with pillow_warnings("ignore"), Image.open(path, formats=PILLOW_FORMATS) as image:
        yield image
