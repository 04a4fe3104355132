"""PNG files whose metadata are damaged or too long, and the transparent colour at every depth."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_png import chunk, png, wide_png

from diffuse.errors import MediaError
from diffuse.media.images import read_image, read_mask
from diffuse.media.png import drop_metadata

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ROWS = b"".join(b"\0" + row.tobytes() for row in COLOURS)
HEADER = (9, 6, 8, 2)


def spoilt(kind: bytes, data: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return chunk(kind, data)[:-4] + b"\1\2\3\4"


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes().removeprefix(b"Exif\0\0")


METADATA = {
    "a text with a wrong checksum": spoilt(b"tEXt", b"Comment\0hello"),
    "a compressed text that is too long": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**23))),
    "many long texts": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (2**20 - 1))) * 80,
    "a text of an unknown compression": chunk(b"zTXt", b"Comment\0\7abc"),
    "an international text that is too long": chunk(b"iTXt", b"A\0\1\0\0\0" + zlib.compress(bytes(2**23))),
    "XMP that is too long": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**23))),
    "an EXIF profile that is too long": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**23))),
    "EXIF with a wrong checksum": spoilt(b"eXIf", exif(6)),
    "a time with a wrong checksum": spoilt(b"tIME", bytes(7)),
    "a time that is too short": chunk(b"tIME", b""),
    "a resolution that is too short": chunk(b"pHYs", b"\0"),
    "a gamma that is too short": chunk(b"gAMA", b""),
    "a colour profile that is none": chunk(b"iCCP", b"\xff\xff"),
    "a colour profile that is too long": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**23))),
    "a rendering intent of no bytes": chunk(b"sRGB", b""),
    "an animation with a wrong checksum": spoilt(b"acTL", struct.pack(">II", 2, 0)),
    "a chunk of one's own": spoilt(b"prVt", b"abc"),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("where", ["before", "behind"])
def test_metadata_never_cost_the_pixels(name: str, where: str, tmp_path: Path) -> None:
    whole = png(HEADER, ROWS, METADATA[name])
    if where == "behind":
        plain = png(HEADER, ROWS)
        whole = plain[:-12] + METADATA[name] + plain[-12:]
    (tmp_path / "x.png").write_bytes(whole)
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")).pixels, COLOURS)


def test_what_says_which_side_is_up_is_kept(tmp_path: Path) -> None:
    profile = f"\nexif\n{len(exif(3)) + 6}\n{(b'Exif' + bytes(2) + exif(3)).hex()}\n".encode()
    for extra in (
        chunk(b"eXIf", exif(3)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>'),
    ):
        (tmp_path / "x.png").write_bytes(png(HEADER, ROWS, spoilt(b"tEXt", b"a\0b"), extra))
        np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")).pixels, COLOURS[::-1, ::-1])


def test_what_is_whole_stays_as_it_is() -> None:
    whole = png(HEADER, ROWS, chunk(b"tRNS", bytes(6)))
    assert drop_metadata(whole) is whole
    assert drop_metadata(b"GIF89a") == b"GIF89a"
    assert drop_metadata(png(HEADER, ROWS, spoilt(b"tEXt", b"a\0b")) + b"behind") == png(HEADER, ROWS) + b"behind"


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS"])
def test_a_damaged_chunk_of_the_pixels_is_refused(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(HEADER, ROWS, spoilt(kind, bytes(6))))
    with pytest.raises(MediaError, match=r"x\.png: is .*damaged"):
        read_image(str(tmp_path / "x.png"))


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of `values` at 1, 2 or 4 bits, each after its filter byte."""
    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1
    return b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in planes)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("upper", [0, 0x100])
def test_the_transparent_grey(bits: int, upper: int, tmp_path: Path) -> None:
    if bits == 1 and upper:
        pytest.skip("Pillow itself takes any bit there")
    values = np.arange(54).reshape(6, 9) % 2**bits
    clear = 2**bits - 2 if bits > 1 else 0
    rows = packed(values, bits)
    (tmp_path / "x.png").write_bytes(png((9, 6, bits, 0), rows, chunk(b"tRNS", struct.pack(">H", clear + upper))))
    grey = values * 255 // (2**bits - 1)
    found = read_image(str(tmp_path / "x.png")).pixels
    np.testing.assert_array_equal(found[..., 0], np.where(values == clear, 255, grey))
    np.testing.assert_array_equal(read_mask(str(tmp_path / "x.png")).pixels, np.where(values == clear, 0, grey))
    opened = Image.open(tmp_path / "x.png")  # and in memory, where nothing has been loaded yet
    np.testing.assert_array_equal(read_image(opened).pixels, found)


@pytest.mark.parametrize("interlaced", [False, True])
def test_the_transparent_colour_of_16_bits(interlaced: bool, tmp_path: Path) -> None:
    values = np.full((3, 3, 3), 0x1234, np.uint16)
    values[0, 0] = (0x1235, 0x1234, 0x1234)  # which has the same upper bytes
    values[2, 1] = (0xFF00, 0, 0)
    content = wide_png(values, chunk(b"tRNS", struct.pack(">HHH", *[0x1234] * 3)))
    if interlaced:
        passes = [values[::8, ::8], values[::8, 4::8], values[4::8, ::4], values[::4, 2::4]]
        passes += [values[2::4, ::2], values[::2, 1::2], values[1::2]]
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for each in passes for row in each if row.size)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 16, 2, 0, 0, 1))
        transparent = chunk(b"tRNS", struct.pack(">HHH", *[0x1234] * 3))
        content = content[:8] + header + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    expected = np.full((3, 3), 255)
    expected[0, 0] = 0x12
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")).pixels[..., 0], expected)
    assert read_image(str(tmp_path / "x.png")).pixels[2, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("clear", "behind"), [(0, [255, 0, 0]), (5, [0, 255, 0])])
def test_a_dark_transparent_colour_of_16_bits(clear: int, behind: list[int], tmp_path: Path) -> None:
    values = np.array([[(0, 0, 0), (5, 5, 5), (0, 0, 5), (65535, 0, 0)]], np.uint16)
    (tmp_path / "x.png").write_bytes(wide_png(values, chunk(b"tRNS", struct.pack(">HHH", *[clear] * 3))))
    assert read_image(str(tmp_path / "x.png")).pixels[0].tolist() == [*([grey] * 3 for grey in behind), [255, 0, 0]]
    rows = b"\0" + np.array([0, 5, 6], ">u2").tobytes()
    (tmp_path / "x.png").write_bytes(png((3, 1, 16, 0), rows, chunk(b"tRNS", struct.pack(">H", clear))))
    assert read_image(str(tmp_path / "x.png")).pixels[0, :, 0].tolist() == behind


def test_many_texts_do_not_cost_the_pixels(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**20)))
    (tmp_path / "x.png").write_bytes(png(HEADER, ROWS, *[text] * 70))
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")).pixels, COLOURS)


def test_the_transparent_colour_of_8_bits_with_upper_bits(tmp_path: Path) -> None:
    colour = struct.pack(">HHH", *(int(value) + 0x100 for value in COLOURS[2, 3]))
    (tmp_path / "x.png").write_bytes(png(HEADER, ROWS, chunk(b"tRNS", colour)))
    assert read_image(str(tmp_path / "x.png")).pixels[2, 3].tolist() == [255, 255, 255]


def saved(values: np.ndarray, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["grey", "rgb", "16 bits", "palette", "tiff"])
def test_a_mask_of_0_and_1_is_understood(kind: str, tmp_path: Path) -> None:
    bits = np.zeros((6, 9), np.uint8)
    bits[2:4, 3:7] = 1
    path = tmp_path / "mask.png"
    contents = {
        "grey": saved(bits),
        "rgb": saved(np.repeat(bits[..., None], 3, axis=2)),
        "16 bits": wide_png(bits.astype(np.uint16)),
        "palette": png((9, 6, 8, 3), packed(bits, 8), chunk(b"PLTE", bytes([0, 0, 0, 1, 1, 1]))),
        "tiff": saved(bits, "tiff"),
    }
    path.write_bytes(contents[kind])
    read = read_mask(str(path))
    np.testing.assert_array_equal(read.pixels, bits * 255)
    assert read.notes == (f"mask_image={path}: holds 0 and 1 only; 1 is taken for white",)


def test_a_mask_of_0_and_1_in_memory() -> None:
    bits = np.eye(4, dtype=np.uint8)
    for given in (bits, Image.fromarray(bits), bits.astype(float), bits.astype(bool)):
        np.testing.assert_array_equal(read_mask(given).pixels, bits * 255)
    assert read_mask(bits).notes and not read_mask(bits.astype(bool)).notes
    with pytest.raises(MediaError, match="give"):
        read_mask(bits.astype(np.int64))


def test_other_masks_are_as_they_are() -> None:
    for values in ([0, 2], [0, 255], [0, 0]):
        mask = np.array([values], np.uint8)
        read = read_mask(mask)
        np.testing.assert_array_equal(read.pixels, mask)
        assert read.notes == ()
