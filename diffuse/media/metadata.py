"""The record inside an image file, and the line of parameters beside it.

The record is JSON under `diffuse` in a PNG, and in the EXIF ImageDescription of every other format. The parameters,
which image viewers know from AUTOMATIC1111's web UI, are PNG's `parameters` and EXIF's UserComment.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image, PngImagePlugin

from diffuse.errors import MediaError

log = logging.getLogger(__name__)

_RECORD = "diffuse"
_PARAMETERS = "parameters"
_EXIF_BYTES = 65533 - 6  # a JPEG marker's content, less "Exif\0\0"
_SURROGATE = re.compile("[\ud800-\udfff]")  # how undecodable bytes of the command line arrive


def png_chunks(record: Mapping[str, Any], parameters: str) -> PngImagePlugin.PngInfo:
    """Returns the text chunks of a PNG: tEXt, and iTXt where the text is not latin-1."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(_RECORD, record_json(record, ascii_only=False))
    chunks.add_text(_PARAMETERS, printable(parameters))
    return chunks


def exif_data(record: Mapping[str, Any], parameters: str, *, byte_order: Literal["be", "le"] = "be") -> Image.Exif:
    """Returns EXIF data with the record as ImageDescription and the parameters as UserComment.

    Args:
        byte_order: of the numbers and of the UTF-16 in UserComment. AUTOMATIC1111 writes big-endian data; in a TIFF,
            they have the order of the file.
    """
    exif = Image.Exif()
    exif.endian = ">" if byte_order == "be" else "<"
    exif[ExifTags.Base.ImageDescription] = record_json(record, ascii_only=True)
    if parameters:
        comments = exif.get_ifd(ExifTags.IFD.Exif)
        comments[ExifTags.Base.UserComment] = b"UNICODE\0" + printable(parameters).encode(f"utf-16-{byte_order}")
        if byte_order == "le":
            exif[ExifTags.IFD.Exif] = comments  # Pillow writes those of a TIFF only if they are set
    return exif


def jpeg_exif_data(record: Mapping[str, Any], parameters: str) -> Image.Exif:
    """Returns as much EXIF data as the 64 KiB of a JPG hold.

    That is everything, or the record alone, or the part of it that finds the record in the tracking store.
    """
    for text in (parameters, ""):
        exif = exif_data(record, text)
        if len(exif.tobytes()) <= _EXIF_BYTES:
            return exif
    log.warning("the record is longer than the 64 KiB that a JPG can hold and is not in it; use output.format=png")
    return exif_data({"left_out": "longer than 64 KiB", "image": record.get("image")}, "")


def png_record(image: Image.Image) -> Any:
    """Returns the text of the record in an open PNG, None if there is none."""
    return image.info.get(_RECORD)


def exif_record(image: Image.Image) -> Any:
    """Returns the text of the record in the EXIF data of an open image, None if there is none."""
    return image.getexif().get(ExifTags.Base.ImageDescription)


def record_json(record: Mapping[str, Any], *, ascii_only: bool) -> str:
    """Returns the record as one line of JSON.

    Args:
        ascii_only: escape every other character, as EXIF strings need it. A lone surrogate is always escaped, because
            no encoding can store it.
    """
    text = json.dumps(record, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_record(text: Any, path: Path) -> dict[str, Any]:
    """Returns the record in the `text` that was read from the file at `path`.

    Raises:
        MediaError: the text is not a JSON object.
    """
    try:
        record = json.loads(text) if isinstance(text, str | bytes) else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise MediaError(f"{path} holds no record of diffuse's; it was made or rewritten by another program")
    return record


def printable(text: str) -> str:
    """Returns `text` without the characters that a file's text cannot hold: lone surrogates and NUL."""
    return _SURROGATE.sub("\ufffd", text).replace("\0", " ")
