"""PNG files as they are given: the chunks that determine the pixels, and the one transparent colour of a tRNS chunk.

Source: W3C, "Portable Network Graphics (PNG) Specification", sections 5 and 11.3.2.1.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTED = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # texts that may say which side is up
_MOST_TEXTS = 4  # which say it; Pillow refuses a file with more than 64 MiB of them together
_MOST_TEXT = 2**20  # bytes; Pillow refuses a file with more
_WIDE_RGB = "RGB;16B"  # Pillow's raw mode of 16 bits
_RAW_DEPTH = {"L;2": 85, "L;4": 17}  # by Pillow's raw mode: what it multiplies the grey by


def drop_metadata(content: bytes) -> bytes:
    """Returns a PNG without the chunks that say nothing of its pixels, its animation or its orientation.

    A decoder refuses a whole picture for a text that is too long or has a wrong checksum; viewers show the picture.
    A chunk that does say something stays as it is, and so does what is no PNG.
    """
    if not content.startswith(SIGNATURE):
        return content
    chunks = list(_chunks(content))
    animated = all(_is_whole(content, *chunk) for chunk in chunks if chunk[0] in _ANIMATION)
    kept = [chunk for chunk in chunks if _is_kept(content, chunk, animated)]
    texts = [chunk for chunk in kept if chunk[0] in _TEXTS]
    kept = [chunk for chunk in kept if chunk not in texts[_MOST_TEXTS:]]
    if len(kept) == len(chunks):
        return content
    end = chunks[-1][2]
    return b"".join([SIGNATURE, *(content[start:stop] for _, start, stop in kept), content[end:]])


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, start and end of each chunk that is all there, up to the last one."""
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        kind = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end


def _is_kept(content: bytes, chunk: tuple[bytes, int, int], animated: bool) -> bool:
    kind, start, end = chunk
    if kind in _PIXELS or not kind[0] & 0x20:  # the bit says that the picture can be shown without it
        return True
    if kind in _ANIMATION:
        return animated
    if kind == b"eXIf":
        return _is_whole(content, *chunk)
    text = content[start + 8 : end - 4]
    return kind in _TEXTS and text.startswith(_ORIENTED) and _is_whole(content, *chunk) and _is_short(kind, text)


def _is_whole(content: bytes, kind: bytes, start: int, end: int) -> bool:
    checksum = int.from_bytes(content[end - 4 : end], "big")
    return zlib.crc32(memoryview(content)[start + 4 : end - 4]) == checksum


def _is_short(kind: bytes, text: bytes) -> bool:
    """Returns whether a text of this chunk has at most `_MOST_TEXT` bytes when it is unpacked."""
    _, _, rest = text.partition(b"\0")
    if kind == b"iTXt" and rest[:1] == b"\1":
        rest = rest[:2] + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        rest = rest[1:]
    elif kind != b"zTXt":
        return len(text) <= _MOST_TEXT
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(rest[1:], _MOST_TEXT)
    except zlib.error:
        return False
    return unpacker.eof


def scale_transparency(image: Image.Image) -> None:
    """Brings the transparent colour of a PNG that is open, but not loaded, to the scale of its pixels.

    tRNS gives it in the depth of the file, of which only the low bits count; Pillow scales 2 and 4 bits to 8.
    """
    colour = image.info.get("transparency")
    if not isinstance(image, PngImagePlugin.PngImageFile) or colour is None or not image.tile:  # it is loaded
        return
    raw = str(image.tile[0].args)
    if isinstance(colour, int) and image.mode == "L":
        factor = _RAW_DEPTH.get(raw, 1)
        image.info["transparency"] = (colour & 255 // factor) * factor
    elif isinstance(colour, tuple) and raw == "RGB":
        image.info["transparency"] = tuple(value & 255 for value in colour)


def has_wide_rgb(image: Image.Image) -> bool:
    """Returns whether an image that is open, but not loaded, is an RGB PNG of 16 bits."""
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return False
    return bool(image.tile) and str(image.tile[0].args) == _WIDE_RGB


def transparent_places(image: Image.Image, content: bytes | None, wide: bool) -> np.ndarray | None:
    """Returns where an RGB PNG of 16 bits has its transparent colour, bool `[H, W]`; None for every other image.

    Pillow keeps the upper 8 bits of each channel. The lower ones are read from `content` by a raw mode with the other
    order of bytes; without it, the upper ones decide.

    Args:
        wide: whether it has 16 bits; where that cannot be known, because it was loaded before, a transparent colour
            above 255 shows it.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or image.mode != "RGB" or not isinstance(colour, tuple):
        return None
    if not wide and max(colour) < 256:
        return None
    wanted = np.asarray(colour) & 65535
    places = np.asarray((np.asarray(image) == wanted >> 8).all(axis=2))
    if content is not None:
        with PngImagePlugin.PngImageFile(io.BytesIO(drop_metadata(content))) as low:
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            low.load()
            places &= (np.asarray(low) == wanted & 255).all(axis=2)
    return places
