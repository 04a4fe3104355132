"""PNG files written byte by byte, also such as Pillow would not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: tuple[int, int, int, int], rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand: width, height, bits and colour type; `rows` with their filter bytes."""
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wide_png(values: np.ndarray, *extra: bytes) -> bytes:
    """16 bits a channel: `[H, W]` is grey, `[H, W, 3]` RGB, `[H, W, 4]` RGBA."""
    colour = {2: 0, 3: {3: 2, 4: 6}.get(values.shape[-1], 0)}[values.ndim]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png((values.shape[1], values.shape[0], 16, colour), rows, *extra)
