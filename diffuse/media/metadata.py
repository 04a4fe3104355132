"""The record inside an image file, and the line of parameters beside it.

The record is JSON under `diffuse` in a PNG, and in the EXIF ImageDescription of every other format. The parameters,
which image viewers know from AUTOMATIC1111's web UI, are PNG's `parameters` and EXIF's UserComment.

Source: CIPA DC-008, "Exchangeable image file format for digital still cameras: Exif", sections 4.6.2 and 4.6.5.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin

from diffuse.errors import MediaError

log = logging.getLogger(__name__)

_RECORD = "diffuse"
_PARAMETERS = "parameters"
_EXIF_BYTES = 65533  # a JPEG marker's content
_ASCII, _LONG, _UNDEFINED = 2, 4, 7  # types of EXIF values
_UNICODE = b"UNICODE\0"  # how a UserComment begins
XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
"""The identity of a box that holds an XMP packet, in files of MP4's family."""
_LONGEST_BOX = 64 * 1024**2  # bytes, of one that is read whole
_XMP_NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
}
_SURROGATE = re.compile("[\ud800-\udfff]")  # how undecodable bytes of the command line arrive


def png_chunks(record: Mapping[str, Any], parameters: str) -> PngImagePlugin.PngInfo:
    """Returns the text chunks of a PNG: tEXt, and iTXt where the text is not latin-1."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(_RECORD, record_json(record, ascii_only=False))
    chunks.add_text(_PARAMETERS, printable(parameters))
    return chunks


def exif_data(record: Mapping[str, Any], parameters: str) -> bytes:
    """Returns EXIF data with the record as ImageDescription and the parameters as UserComment, as a JPG or a WebP
    holds them.

    They are written here because Pillow has no way to give UserComment its type, UNDEFINED, without which readers such
    as piexif refuse it. Numbers and UTF-16 are big-endian, as AUTOMATIC1111's web UI writes them.
    """
    description = record_json(record, ascii_only=True).encode("ascii") + b"\0"
    first: list[tuple[int, int, bytes]] = [(ExifTags.Base.ImageDescription, _ASCII, description)]
    header = b"Exif\0\0MM\0*" + struct.pack(">I", 8)
    if not parameters:
        return header + _directory(first, 8)
    comment = _UNICODE + printable(parameters).encode("utf-16-be")
    place = 8 + len(_directory([*first, (ExifTags.IFD.Exif, _LONG, bytes(4))], 8))
    first.append((ExifTags.IFD.Exif, _LONG, struct.pack(">I", place)))
    return header + _directory(first, 8) + _directory([(ExifTags.Base.UserComment, _UNDEFINED, comment)], place)


def _directory(entries: list[tuple[int, int, bytes]], offset: int) -> bytes:
    """Returns an EXIF directory that begins at `offset`: entries of 12 bytes, then the values of more than 4 bytes."""
    table, values = struct.pack(">H", len(entries)), b""
    behind = offset + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        count = len(value) // (4 if kind == _LONG else 1)
        if len(value) > 4:
            place = struct.pack(">I", behind + len(values))
            values += value + bytes(len(value) % 2)
        else:
            place = value.ljust(4, b"\0")
        table += struct.pack(">HHI", tag, kind, count) + place
    return table + bytes(4) + values


def tiff_exif_data(record: Mapping[str, Any], parameters: str) -> Image.Exif:
    """Returns the same for a TIFF, whose own tags they become; numbers and UTF-16 have the order of the file."""
    exif = Image.Exif()
    exif.endian = "<"
    exif[ExifTags.Base.ImageDescription] = record_json(record, ascii_only=True)
    if parameters:
        comments = exif.get_ifd(ExifTags.IFD.Exif)
        comments[ExifTags.Base.UserComment] = _UNICODE + printable(parameters).encode("utf-16-le")
        exif[ExifTags.IFD.Exif] = comments  # Pillow writes those of a TIFF only if they are set
    return exif


def jpeg_exif_data(record: Mapping[str, Any], parameters: str) -> bytes:
    """Returns as much EXIF data as the 64 KiB of a JPG hold, and says what is left out.

    That is everything, or the record alone, or the part of it that finds the record in the tracking store.
    """
    exif = exif_data(record, parameters)
    if len(exif) <= _EXIF_BYTES:
        return exif
    exif = exif_data(record, "")
    if len(exif) <= _EXIF_BYTES:
        log.warning(
            "the parameters that image viewers show do not fit in the 64 KiB of a JPG beside the record and are not in "
            "it; use output.format=png or webp"
        )
        return exif
    log.warning(
        "the record is longer than the 64 KiB that a JPG can hold and is not in it, and neither are the parameters "
        "that image viewers show; use output.format=png"
    )
    return exif_data({"left_out": "longer than 64 KiB", "image": record.get("image")}, "")


def xmp_packet(description: str) -> bytes:
    """Returns an XMP packet with a description, without the padding that is for programs that rewrite one in place."""
    x, rdf, dc = (f"{{{address}}}" for address in _XMP_NAMES.values())
    for name, address in _XMP_NAMES.items():
        ElementTree.register_namespace(name, address)
    root = ElementTree.Element(f"{x}xmpmeta")
    about = ElementTree.SubElement(ElementTree.SubElement(root, f"{rdf}RDF"), f"{rdf}Description", {f"{rdf}about": ""})
    choices = ElementTree.SubElement(ElementTree.SubElement(about, f"{dc}description"), f"{rdf}Alt")
    language = {"{http://www.w3.org/XML/1998/namespace}lang": "x-default"}
    ElementTree.SubElement(choices, f"{rdf}li", language).text = description
    return ElementTree.tostring(root, encoding="utf-8")


def xmp_record(path: Path) -> str | None:
    """Returns the description in the XMP packet of a file of MP4's family, None if there is none."""
    with open(path, "rb") as file:
        packet = next((content[16:] for content in _boxes(file, b"uuid") if content.startswith(XMP_BOX)), None)
    if packet is None or b"<!" in packet:  # a definition of entities is not of XMP
        return None
    try:
        root = ElementTree.fromstring(packet.decode())
    except (ElementTree.ParseError, ValueError):
        return None
    return root.findtext(".//dc:description/rdf:Alt/rdf:li", None, _XMP_NAMES)


def _boxes(file: BinaryIO, kind: bytes) -> Iterator[bytes]:
    """Yields the content of the outermost boxes of a kind in a file of MP4's family."""
    end = file.seek(0, os.SEEK_END)
    place = 0
    while place + 8 <= end:
        file.seek(place)
        size, name = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1 and place + 16 <= end:  # the size of a long one stands behind its name
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        size = size or end - place  # the last one may leave it open
        if size < head or place + size > end:
            return
        if name == kind and size <= _LONGEST_BOX:
            yield file.read(size - head)
        place += size


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
