"""TIFF files: depth, photometric interpretation and alpha are those of the file, and what would be wrong is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.images import read_image, read_mask

ROWS, COLUMNS = np.mgrid[0:24, 0:40]
RGB = np.stack([COLUMNS * 6, ROWS * 10, (ROWS + COLUMNS) * 3], axis=-1).astype(np.uint8)
GREY, ALPHA = RGB[..., 0], RGB[..., 1]
WIDE = RGB.astype(np.uint16) * 257


def tagged(values: bytes, *tags: tuple[int, int, int, Any], size: tuple[int, int] = (40, 24)) -> bytes:
    """A little-endian TIFF of one strip, written by hand; tags are number, type, count and value."""
    entries = [(256, 4, 1, size[0]), (257, 4, 1, size[1]), (278, 4, 1, size[1]), (279, 4, 1, len(values))]
    numbers = {tag[0] for tag in tags}
    entries = sorted([*(entry for entry in entries if entry[0] not in numbers), *tags, (273, 4, 1, None)])
    start = 8 + 2 + 12 * len(entries) + 4
    table, behind = struct.pack("<H", len(entries)), b""
    rows = []
    for number, kind, count, value in entries:
        if isinstance(value, bytes) and len(value) > 4:
            rows.append((number, kind, count, struct.pack("<I", start + len(behind))))
            behind += value
        else:
            rows.append((number, kind, count, value))
    for number, kind, count, value in rows:
        content = struct.pack("<I", start + len(behind)) if value is None else value
        content = content if isinstance(content, bytes) else struct.pack("<I", content)
        table += struct.pack("<HHI", number, kind, count) + content.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + table + bytes(4) + behind + values


def twelve_bits(values: np.ndarray) -> bytes:
    """Rows of 12-bit numbers, packed."""
    bits = (values.astype(np.uint16)[..., None] >> np.arange(12)[::-1]) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_grey_of_12_bits(compressed: bool, tmp_path: Path) -> None:
    values = np.linspace(0, 4095, GREY.size).round().astype(np.uint16).reshape(GREY.shape)
    data = twelve_bits(values)
    tags = [(258, 3, 1, 12), (259, 3, 1, 8 if compressed else 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    (tmp_path / "x.tif").write_bytes(tagged(zlib.compress(data) if compressed else data, *tags))
    found = read_image(str(tmp_path / "x.tif")).pixels
    assert np.abs(found[..., 0] - np.round(values / 4095 * 255)).max() <= 1
    np.testing.assert_array_equal(read_image(Image.open(tmp_path / "x.tif")).pixels, found)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    colour = colour if colour.ndim == 3 else colour[..., None].repeat(3, axis=2)
    return np.asarray(colour * share + 255 * (1 - share))


def multiplied(colour: np.ndarray) -> np.ndarray:
    share = ALPHA / 255 if colour.ndim == 2 else ALPHA[..., None] / 255
    return np.dstack([np.round(colour * share).astype(np.uint8), ALPHA])


PALETTE = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256)]).astype(np.uint16)
THREE = GREY[..., None].repeat(3, axis=2)
LAYOUTS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "grey, 0 is white": (GREY, {"photometric": "miniswhite"}, 255 - THREE),
    "16 bits, 0 is white": (WIDE[..., 0], {"photometric": "miniswhite"}, 255 - THREE),
    "bits, 0 is white": (GREY > 99, {"photometric": "miniswhite"}, np.where(THREE > 99, 0, 255)),
    "16 bits": (WIDE[..., 0], {"photometric": "minisblack"}, THREE),
    "16 bits of colour": (WIDE, {"photometric": "rgb"}, RGB),
    "planes": (RGB.transpose(2, 0, 1).copy(), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "alpha": (np.dstack([RGB, ALPHA]), {"extrasamples": ["unassalpha"]}, over_white(RGB, ALPHA)),
    "multiplied by alpha": (multiplied(RGB), {"extrasamples": ["assocalpha"]}, over_white(RGB, ALPHA)),
    "a fourth channel that is not alpha": (np.dstack([RGB, ALPHA]), {"extrasamples": ["unspecified"]}, RGB),
    "grey and alpha": (
        np.dstack([GREY, ALPHA]),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
        over_white(GREY, ALPHA),
    ),
    "grey multiplied by alpha": (
        multiplied(GREY),
        {"photometric": "minisblack", "extrasamples": ["assocalpha"], "planarconfig": "contig"},
        over_white(GREY, ALPHA),
    ),
    "palette": (GREY, {"photometric": "palette", "colormap": PALETTE * 257}, PALETTE.T[GREY]),
    "palette of 8 bits": (GREY, {"photometric": "palette", "colormap": PALETTE}, PALETTE.T[GREY]),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_layouts(name: str, compression: str | None, tmp_path: Path) -> None:
    values, options, expected = LAYOUTS[name]
    options = {"photometric": "rgb", **options}
    tifffile.imwrite(tmp_path / "x.tif", values, compression=compression, byteorder="<", **options)
    found = read_image(str(tmp_path / "x.tif"))
    assert np.abs(found.pixels - expected).max() <= 2
    assert found.notes == ()


@pytest.mark.parametrize("kind", [5, 11, 12])  # a fraction that is divided by zero, and NaN of two sizes
def test_an_orientation_beside_numbers_that_make_no_sense(kind: int, tmp_path: Path) -> None:
    data = np.ascontiguousarray(RGB).tobytes()
    bits = struct.pack("<HHH", 8, 8, 8)
    odd = {5: struct.pack("<II", 1, 0), 11: struct.pack("<f", float("nan")), 12: struct.pack("<d", float("nan"))}[kind]
    tags = [(258, 3, 3, bits), (262, 3, 1, 2), (274, 3, 1, 6), (277, 3, 1, 3), (282, kind, 1, odd)]
    (tmp_path / "x.tif").write_bytes(tagged(data, *tags))
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.tif")).pixels, np.rot90(RGB, -1))


def camera(path: Path, *tags: tuple[int, int, int, Any]) -> None:
    """A TIFF whose first picture is a preview, with tags of raw files."""
    bits = struct.pack("<HHH", 8, 8, 8)
    common = [(258, 3, 3, bits), (262, 3, 1, 2), (277, 3, 1, 3)]
    path.write_bytes(tagged(np.ascontiguousarray(RGB).tobytes(), *common, *tags))


def canon(path: Path) -> None:
    camera(path)
    content = path.read_bytes()
    (first,) = struct.unpack("<I", content[4:8])
    count = struct.unpack("<H", content[first : first + 2])[0]
    directory = content[first : first + 2 + 12 * count + 4]
    path.write_bytes(content[:4] + struct.pack("<I", len(content)) + b"CR\2\0" + content[12:] + directory)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "DNG": (lambda path: camera(path, (254, 4, 1, 1), (50706, 1, 4, b"\1\4\0\0")), "camera's raw file"),
    "DNG without a preview's mark": (lambda path: camera(path, (50706, 1, 4, b"\1\4\0\0")), "camera's raw file"),
    "NEF, ARW": (lambda path: camera(path, (254, 4, 1, 1), (330, 4, 1, 8)), "camera's raw file"),
    "CR2": (canon, "camera's raw file"),
    "signed": (lambda path: tifffile.imwrite(path, GREY.view(np.int8), photometric="minisblack"), "signed numbers"),
    "signed, 16 bits": (
        lambda path: tifffile.imwrite(path, WIDE[..., 0].view(np.int16), photometric="minisblack"),
        "signed numbers",
    ),
    "planes of 16 bits": (
        lambda path: tifffile.imwrite(
            path, WIDE.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate", byteorder="<"
        ),
        "16-bit colours in separate planes",
    ),
    "YCbCr of several sizes": (
        lambda path: path.write_bytes(
            tagged(bytes(24 * 40 * 2), (258, 3, 3, struct.pack("<HHH", 8, 8, 8)), (262, 3, 1, 6), (277, 3, 1, 3))
        ),
        "YCbCr colours of several sizes",
    ),
    "half precision": (
        lambda path: tifffile.imwrite(path, (GREY / 255).astype(np.float16), photometric="minisblack"),
        "a TIFF that is damaged or of a rare kind",
    ),
    "10 bits": (
        lambda path: path.write_bytes(tagged(bytes(50 * 24), (258, 3, 1, 10), (262, 3, 1, 1), (277, 3, 1, 1))),
        "a TIFF that is damaged or of a rare kind",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_read_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    write, said = REFUSED[name]
    write(tmp_path / "x.tif")
    for read in (read_image, read_mask):
        with pytest.raises(MediaError, match=said) as error:
            read(str(tmp_path / "x.tif"))
        assert "\n" not in str(error.value)


def test_a_smaller_copy_is_noted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", RGB, photometric="rgb", subfiletype=1)
    read = read_image(str(tmp_path / "x.tif"))
    np.testing.assert_array_equal(read.pixels, RGB)
    assert read.notes == (
        f"input_image={tmp_path}/x.tif: the first picture in it is said to be a smaller copy; it is taken",
    )
