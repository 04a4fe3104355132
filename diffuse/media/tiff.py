"""TIFF files as they are given: depth, photometric interpretation and colour map as their tags say, and what they are.

Source: Adobe, "TIFF Revision 6.0"; "Digital Negative (DNG) Specification".
"""

from __future__ import annotations

import numpy as np
from PIL import Image, TiffImagePlugin

from diffuse.errors import MediaError

_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706
_BITS, _PHOTOMETRIC, _PLANES, _COLORMAP, _SUBSAMPLING, _SAMPLE_FORMAT = 258, 262, 284, 320, 530, 339
_WHITE_IS_ZERO, _YCBCR = 0, 6
_REDUCED = 1  # a bit of the subfile type
_SIGNED = 2
_CANON_RAW = b"CR"  # at offset 8


def is_tiff(content: bytes) -> bool:
    """Returns whether a file begins as TIFF files do."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_tiff(image: Image.Image, content: bytes | None, label: str) -> list[str]:
    """Checks that the pixels of an open TIFF are what Pillow takes them for. Returns notes for the user.

    Args:
        content: of the file; None of an image that was in memory.

    Raises:
        MediaError: it is a camera's raw file, or has pixels that would be read wrongly.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return []
    tags = image.tag_v2
    reduced = bool(_number(tags.get(_SUBFILE_TYPE)) & _REDUCED)
    canon = content is not None and content[8:10] == _CANON_RAW
    if _DNG_VERSION in tags or canon or (reduced and _SUB_IFDS in tags):
        raise MediaError(
            f"{label}: is a camera's raw file, and only the preview in it could be read; "
            "develop it, and save it as PNG, JPG or TIFF"
        )
    if _SIGNED in tags.get(_SAMPLE_FORMAT, (1,)):
        raise MediaError(f"{label}: holds signed numbers; save it as RGB of 8 or 16 bits")
    raw = image.info.get("compression") == "raw"
    if raw and tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8:
        raise MediaError(f"{label}: holds 16-bit colours in separate planes; save it with the colours together")
    if raw and tags.get(_PHOTOMETRIC) == _YCBCR and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise MediaError(f"{label}: holds YCbCr colours of several sizes without compression; save it as RGB")
    return [f"{label}: the first picture in it is said to be a smaller copy; it is taken"] if reduced else []


def grey_depth(image: Image.Image) -> tuple[int, bool]:
    """Returns the largest value that wide grey pixels can have, and whether 0 is white."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 2**16 - 1, False
    return 2 ** image.tag_v2.get(_BITS, (16,))[0] - 1, image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def mend_colormap(image: Image.Image) -> None:
    """Takes the colours of a loaded TIFF with a palette for 8-bit ones where none is above 255.

    They should have 16 bits. Some programs write 8, which libtiff recognises in the same way.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in ("P", "PA"):
        values = np.asarray(image.tag_v2.get(_COLORMAP, ()))
        if values.size and values.size % 3 == 0 and 0 < values.max() < 256:
            image.putpalette(values.reshape(3, -1).T.astype(np.uint8).tobytes())


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
