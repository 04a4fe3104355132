"""Images in files, read back with Pillow: the right pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_images import noisy, pixels, save, smooth

SIZES = [(48, 64), (64, 64), (1, 1), (3, 65), (130, 7)]  # rows, columns


@pytest.mark.parametrize("size", SIZES)
def test_png_holds_the_very_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    image = noisy(*size)
    path = save(image, tmp_path)
    assert path == tmp_path / "picture.png"
    assert Image.open(path).format == "PNG"
    np.testing.assert_array_equal(pixels(path), image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("format", "name"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_lossy_formats_come_close(format: str, name: str, size: tuple[int, int], tmp_path: Path) -> None:
    image = smooth(*size)
    path = save(image, tmp_path, format=format, quality=95)
    assert (path.suffix, Image.open(path).format) == (f".{format}", name)
    assert pixels(path).shape == image.shape
    difference = np.abs(pixels(path).astype(int) - image.astype(int))
    assert difference.mean() < 2 and difference.max() <= 12


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_quality_trades_bytes_for_likeness(format: str, tmp_path: Path) -> None:
    image = (smooth(96, 96) // 2 + noisy(96, 96) // 4).astype(np.uint8)
    paths = [save(image, tmp_path, format=format, quality=quality) for quality in (1, 50, 100)]
    sizes = [path.stat().st_size for path in paths]
    errors = [np.abs(pixels(path).astype(int) - image).mean() for path in paths]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert sizes[0] < sizes[2] / 2 and errors[2] < errors[0] * 0.8


def test_pictures_that_are_views_of_other_arrays(tmp_path: Path) -> None:
    wide = noisy(20, 40)
    for view in (wide[::2, ::3], wide[::-1], wide[..., ::-1], wide.transpose(1, 0, 2), np.asfortranarray(wide)):
        np.testing.assert_array_equal(pixels(save(view, tmp_path)), view)
