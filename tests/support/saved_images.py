"""Images saved for tests, and how other programs read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffuse.errors import DiffuseError
from diffuse.media.formats import STILL_FORMATS
from diffuse.media.save import save_media

FORMATS = tuple(row.name for row in STILL_FORMATS)
RECORD = {"diffuse": "0", "text": 'comma, "quote" {x} \n 🚀 e\u0301', "image": {"seed": 7, "pixels_sha256": "ab"}}


def smooth(height: int, width: int, shade: int = 0) -> np.ndarray:
    """A picture without edges, which lossy formats keep well."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin((x + shade) / 20), 128 + 100 * np.cos(y / 25), 128 + 50 * np.sin((x + y) / 30)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


def save(image: np.ndarray, folder: Path, stem: str = "picture", **options: Any) -> Path:
    return save_media(image[None], folder, stem, **{"record": RECORD, **options})


def exif(path: Path) -> tuple[str, str]:
    """The image description and the user comment, as other programs find them."""
    with Image.open(path) as picture:
        found = picture.getexif()
        comment = found.get_ifd(0x8769).get(0x9286, b"UNICODE\0")
        order = "le" if picture.format == "TIFF" else "be"  # a TIFF's is that of the file
    assert comment.startswith(b"UNICODE\0")
    return found[0x010E], comment[8:].decode(f"utf-16-{order}")


def refuse(action: Callable[[], Any], *said: str) -> None:
    with pytest.raises(DiffuseError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1
    assert all(text in str(caught.value) for text in said), str(caught.value)
