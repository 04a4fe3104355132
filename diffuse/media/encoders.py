"""Encoders of images: the pixels with their record, as the bytes of a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from diffuse.media.metadata import exif_data, jpeg_exif_data, png_chunks, tiff_exif_data

_FULL_CHROMA = 90  # from this JPG quality on, colour is stored at full resolution


def encode_png(image: np.ndarray, record: Mapping[str, Any], parameters: str, quality: int) -> bytes:
    """Returns an image, uint8 RGB `[H, W, 3]`, as a PNG. It loses nothing at any quality."""
    return _encode(image, "PNG", pnginfo=png_chunks(record, parameters))


def encode_jpg(image: np.ndarray, record: Mapping[str, Any], parameters: str, quality: int) -> bytes:
    """Returns an image, uint8 RGB `[H, W, 3]`, as a JPG of quality 1 to 100."""
    chroma = 0 if quality >= _FULL_CHROMA else 2
    exif = jpeg_exif_data(record, parameters)
    return _encode(image, "JPEG", quality=quality, subsampling=chroma, optimize=True, exif=exif)


def encode_webp(image: np.ndarray, record: Mapping[str, Any], parameters: str, quality: int) -> bytes:
    """Returns an image, uint8 RGB `[H, W, 3]`, as a lossy WebP of quality 1 to 100."""
    return _encode(image, "WEBP", quality=quality, exif=exif_data(record, parameters))


def encode_tiff(image: np.ndarray, record: Mapping[str, Any], parameters: str, quality: int) -> bytes:
    """Returns an image, uint8 RGB `[H, W, 3]`, as an uncompressed TIFF. It loses nothing at any quality.

    Pillow compresses a TIFF through libtiff, which refuses the EXIF data that hold the parameters.
    """
    return _encode(image, "TIFF", exif=tiff_exif_data(record, parameters))


def _encode(image: np.ndarray, pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, pillow_format, **options)
    return buffer.getvalue()
