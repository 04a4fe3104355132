"""Odd pictures: each comes out as its makers meant it, or is refused in one line."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_png import chunk, png, wide_png

from diffuse.errors import MediaError, one_line
from diffuse.media.images import InputImageCache, read_image, read_mask, resize_image
from diffuse.schema import Resize

HEIGHT, WIDTH = 24, 40


def scene() -> np.ndarray:
    """A picture without symmetry, uint8 RGB."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([columns * 6, rows * 10, (rows + columns) * 3], axis=-1).astype(np.uint8)


def near(found: np.ndarray, expected: np.ndarray, levels: int = 1) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= levels


# Where the stored picture has to be turned to so that it is upright: EXIF 2.32, tag 0x0112.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene())))
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    stored.save(tmp_path / f"x.{suffix}", exif=exif, **({} if suffix in ("png", "tiff") else lossless))
    near(read_image(str(tmp_path / f"x.{suffix}")).pixels, scene(), 4 if suffix == "jpg" else 0)


def odd_exif(orientation: int, kind: int, value: bytes) -> bytes:
    """EXIF data with an orientation, and a resolution that cannot be written again."""
    table = struct.pack("<HHHII", 2, 0x0112, 3, 1, orientation) + struct.pack("<HHI", 0x011A, kind, 1)
    inline = value if len(value) <= 4 else struct.pack("<I", 8 + 2 + 24 + 4)
    return b"Exif\0\0II*\0\x08\0\0\0" + table + inline.ljust(4, b"\0") + bytes(4) + (value if len(value) > 4 else b"")


ODD_NUMBERS = {
    "a fraction of zero": (5, struct.pack("<II", 72, 0)),
    "no fraction at all": (5, struct.pack("<II", 0, 0)),
    "a signed fraction of zero": (10, struct.pack("<ii", -1, 0)),
    "NaN": (11, struct.pack("<f", float("nan"))),
    "infinity of 8 bytes": (12, struct.pack("<d", float("inf"))),
    "text": (2, b"abc\0"),
    "a value behind the end": (5, b""),
}


@pytest.mark.parametrize("name", ODD_NUMBERS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_is_turned_without_writing_its_exif_data_again(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    options: dict[str, Any] = {"png": {}, "webp": {"lossless": True}}.get(suffix, {"quality": 100, "subsampling": 0})
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](scene())))
    stored.save(path, exif=odd_exif(6, *ODD_NUMBERS[name]), **options)
    for source in (str(path), Image.open(path)):
        near(read_image(source).pixels, scene(), 4 if suffix == "jpg" else 0)


def test_exif_data_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(scene()).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\x01\x12\0\x03" * 9)
    near(read_image(str(path)).pixels, scene(), 0)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(np.dstack([scene(), alpha])).save(path)
    share = alpha[..., None] / 255
    near(read_image(str(path)).pixels, np.round(scene() * share + 255 * (1 - share)))


def test_grey_with_transparency(tmp_path: Path) -> None:
    grey, alpha = scene()[..., 0], scene()[..., 1]
    path = tmp_path / "x.png"
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(path)
    expected = np.round(grey * (alpha / 255) + 255 - alpha)
    near(read_image(str(path)).pixels, np.repeat(expected[..., None], 3, axis=2))


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = scene()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    near(read_image(str(tmp_path / "grey.png")).pixels, np.repeat(grey[..., None], 3, axis=2), 0)
    Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    near(read_image(str(tmp_path / "bits.png")).pixels, np.repeat((grey > 99)[..., None] * 255, 3, axis=2), 0)


def test_palette_with_transparency(tmp_path: Path) -> None:
    indices = (np.arange(HEIGHT * WIDTH) % 3).reshape(HEIGHT, WIDTH).astype(np.uint8)
    colours = np.array([[200, 0, 0], [0, 100, 0], [10, 20, 30]], np.uint8)
    path = tmp_path / "x.png"
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    extra = chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", bytes([255, 0, 128]))
    path.write_bytes(png((WIDTH, HEIGHT, 8, 3), rows, *extra))
    over = np.array([[200, 0, 0], [255, 255, 255], [132, 137, 142]], np.uint8)
    near(read_image(str(path)).pixels, over[indices])


def test_one_transparent_colour(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(scene()).save(path, transparency=tuple(int(v) for v in scene()[3, 5]))
    expected = scene()
    expected[3, 5] = 255
    near(read_image(str(path)).pixels, expected, 0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled(channels: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    values = ramp if channels == 1 else np.stack([ramp, ramp.T.reshape(ramp.shape), 65535 - ramp], axis=-1)
    expected = np.repeat(ramp[..., None], 3, axis=2) if channels == 1 else values
    if channels == 4:
        values = np.dstack([values, np.full_like(ramp, 65535)])
    path = tmp_path / "x.png"
    path.write_bytes(wide_png(values.round().astype(np.uint16)))
    near(read_image(str(path)).pixels, np.round(expected / 257))


def test_sixteen_bits_with_a_transparent_grey(tmp_path: Path) -> None:
    values = np.array([[1000, 30000, 1001]], np.uint16)
    path = tmp_path / "x.png"
    path.write_bytes(wide_png(values, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert read_image(str(path)).pixels[0, :, 0].tolist() == [255, 117, 4]


def test_sixteen_bits_in_other_formats(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 300).reshape(15, 20).round().astype(np.uint16)
    (tmp_path / "x.pgm").write_bytes(b"P5 20 15 65535\n" + values.astype(">u2").tobytes())
    Image.fromarray(values).save(tmp_path / "x.tif")
    for name in ("x.pgm", "x.tif"):
        near(read_image(str(tmp_path / name)).pixels[..., 1], np.round(values / 257))


def test_cmyk(tmp_path: Path) -> None:
    inks = np.stack([scene()[..., 0], scene()[..., 1], scene()[..., 2], scene()[..., 0] // 2], axis=-1)
    path = tmp_path / "x.jpg"
    Image.fromarray(inks, "CMYK").save(path, quality=100, subsampling=0)
    light = 1 - inks / 255
    near(read_image(str(path)).pixels, np.round(255 * light[..., :3] * light[..., 3:]), 4)


def press() -> bytes:
    """An ICC profile, version 2, of a press whose cyan is a grey of half the lightness, and whose other inks are black.

    Its one table says so for the 16 ways to lay inks over each other, in Lab; what is between is interpolated.
    """
    corners = bytearray()
    for corner in range(16):
        cyan, *others = (corner >> bit & 1 for bit in (3, 2, 1, 0))
        lightness = 0.0 if any(others) else 0.5 if cyan else 1.0
        corners += bytes([round(255 * lightness), 128, 128])
    ramp = bytes(range(256))
    unit = b"".join(struct.pack(">i", 65536 * (i == j)) for i in range(3) for j in range(3))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + ramp * 4 + bytes(corners) + ramp * 3
    table += bytes(-len(table) % 4)
    tags = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(table))
    white = struct.pack(">iii", *(round(65536 * value) for value in (0.9642, 1.0, 0.8249)))
    head = struct.pack(">I4sI4s4s4s12s4s", 144 + len(table), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"", b"acsp")
    return head + bytes(28) + white + bytes(48) + tags + table


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_with_the_profile_of_its_press(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(inks, "CMYK").save(path, icc_profile=press(), **options)
    # L* 50 is 18.4 % of the light, which sRGB writes as 119 (IEC 61966-2-1).
    expected = np.where(inks[..., :1] == 255, 119, 255).repeat(3, axis=2)
    near(read_image(str(path)).pixels, expected, 2)


def test_cmyk_with_a_damaged_profile(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(path, icc_profile=press()[:200])
    assert (read_image(str(path)).pixels == [0, 255, 255]).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_several(suffix: str, tmp_path: Path) -> None:
    colours = [(250, 20, 20), (20, 250, 20), (20, 20, 250)]
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in colours]
    path = tmp_path / f"x.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    read = read_image(str(path))
    near(read.pixels, np.broadcast_to(np.array(colours[0], np.uint8), (HEIGHT, WIDTH, 3)))
    assert read.notes == (f"input_image={path}: holds 3 frames; the first is taken",)


def test_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (1, 1), (1, 2, 3)).save(path)
    read = read_image(str(path))
    assert read.size == (1, 1)
    for how in Resize:
        found = resize_image(read.pixels, 32, 16, how)
        assert found.shape == (16, 32, 3)
        assert (found == [1, 2, 3]).all()


def test_a_name_with_a_tilde_and_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(scene()).save(tmp_path / "a, b=[c] é.png")
    read = read_image("~/a, b=[c] é.png")
    near(read.pixels, scene(), 0)
    assert re.fullmatch("[0-9a-f]{64}", read.sha256)


def bomb() -> bytes:
    return png((50_000, 50_000, 8, 2), b"\0" * 1000)


def cut(suffix: str, **options: Any) -> Callable[[Path], None]:
    """A file of which the second half is missing."""

    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(noise).save(path, suffix, **options)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return write


def lzw_garbage(path: Path) -> None:
    Image.fromarray(scene()).save(path, "GIF")
    content = bytearray(path.read_bytes())
    content[-200:-2] = b"\xff" * 198
    path.write_bytes(content)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_text("a cat\n"), "not a picture that can be read; give a PNG"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "bomb": (lambda path: path.write_bytes(bomb()), "more than 134 million pixels; scale it down"),
    "large, below Pillow's own limit": (
        lambda path: path.write_bytes(png((13_000, 13_000, 8, 0), b"\0")),
        "13000 x 13000 pixels are more than 134 million",
    ),
    "missing": (lambda path: None, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "pipe": (lambda path: os.mkfifo(path), "is no file"),
    "truncated png": (cut("PNG"), "damaged or cut short"),
    "truncated jpg": (cut("JPEG"), "damaged or cut short"),
    "truncated webp": (cut("WEBP", lossless=True), "damaged or cut short|not a picture"),
    "truncated tiff": (cut("TIFF"), "damaged or cut short|not a picture"),
    "truncated bmp": (cut("BMP"), "damaged or cut short"),
    "truncated avif": (cut("AVIF"), "damaged or cut short|not a picture"),
    "header alone": (lambda path: path.write_bytes(png((9, 9, 8, 2), b"")[:33]), "damaged or cut short"),
    "EPS, which would start Ghostscript": (
        lambda path: Image.fromarray(scene()).save(path, "EPS"),
        "not a picture that can be read",
    ),
    "floating point": (lambda path: Image.new("F", (4, 4)).save(path, "TIFF"), "floating-point numbers; save it as"),
    "32 bits": (lambda path: Image.new("I", (4, 4)).save(path, "TIFF"), "signed numbers; save it as"),
    "Lab": (lambda path: Image.new("LAB", (4, 4)).save(path, "TIFF"), "Lab colours; save it as"),
    "a name with a zero byte": (lambda path: None, "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write, said = REFUSED[name]
    path = tmp_path / "x"
    write(path)
    given = f"{path}\0" if "zero byte" in name else str(path)
    with pytest.raises(MediaError, match=said) as error, warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(given)
    assert str(error.value).startswith(f"input_image={one_line(given)}: ")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(scene()).save(path)
    path.chmod(0)
    with pytest.raises(MediaError, match="cannot be read: Permission denied"):
        read_image(str(path))


def test_every_cut_of_a_file_is_right_or_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        Image.fromarray(scene()).save(whole, kind)
        content = whole.read_bytes()
        expected = read_image(str(whole)).pixels
        for length in range(0, len(content), max(1, len(content) // 60)):
            path = tmp_path / "cut"
            path.write_bytes(content[:length])
            try:
                found = read_image(str(path)).pixels
            except MediaError as error:
                assert "\n" not in str(error)
            else:
                np.testing.assert_array_equal(found, expected)


def test_a_mask_is_grey_and_transparent_is_black(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    mask = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    mask[4:9, 10:30] = (255, 255, 255, 255)
    mask[12:20, 5:9] = (255, 255, 255, 0)
    Image.fromarray(mask).save(path)
    read = read_mask(str(path))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:9, 10:30] = 255
    near(read.pixels, expected, 0)
    assert read.size == (WIDTH, HEIGHT)
    with pytest.raises(MediaError, match=r"^mask_image=.*there is no such file"):
        read_mask(str(tmp_path / "other.png"))


def disc(height: int, width: int, radius: float) -> np.ndarray:
    """White on black in the middle, smooth at the edge."""
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)
    return np.repeat((255 / (1 + np.exp(distance - radius)))[..., None], 3, axis=2).astype(np.uint8)


def extent(picture: np.ndarray, level: int = 127) -> tuple[float, float, float, float]:
    """Centre and size of what is bright: rows, columns, height, width."""
    bright = picture[..., 0] > level
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2, np.ptp(rows) + 1, np.ptp(columns) + 1


def test_stretch_changes_proportions() -> None:
    _, _, height, width = extent(resize_image(disc(100, 200, 40), 100, 100, Resize.stretch))
    assert abs(height - 80) <= 2
    assert abs(width - 40) <= 2


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (333, 77)])
def test_crop_fills_and_keeps_proportions(size: tuple[int, int]) -> None:
    found = resize_image(disc(120, 120, 20), *size, Resize.crop)
    assert found.shape == (size[1], size[0], 3)
    row, column, height, width = extent(found)
    scale = max(size) / 120
    assert abs(row - (size[1] - 1) / 2) <= 1
    assert abs(column - (size[0] - 1) / 2) <= 1
    assert abs(width - 40 * scale) <= 3
    assert height >= min(size[1], 40 * scale - 3)


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (333, 77)])
def test_pad_shows_all_and_keeps_proportions(size: tuple[int, int]) -> None:
    found = resize_image(disc(120, 120, 20), *size, Resize.pad)
    assert found.shape == (size[1], size[0], 3)
    row, column, height, width = extent(found)
    scale = min(size) / 120
    assert abs(row - (size[1] - 1) / 2) <= 1
    assert abs(column - (size[0] - 1) / 2) <= 1
    assert abs(width - 40 * scale) <= 2
    assert abs(height - 40 * scale) <= 2


def test_pad_repeats_the_edge() -> None:
    found = resize_image(scene(), WIDTH + 20, HEIGHT, Resize.pad)
    np.testing.assert_array_equal(found[:, 10:-10], scene())
    np.testing.assert_array_equal(found[:, :10], np.repeat(scene()[:, :1], 10, axis=1))
    np.testing.assert_array_equal(found[:, -10:], np.repeat(scene()[:, -1:], 10, axis=1))


@pytest.mark.parametrize("how", Resize)
def test_a_picture_of_the_right_size_stays_as_it_is(how: Resize) -> None:
    np.testing.assert_array_equal(resize_image(scene(), WIDTH, HEIGHT, how), scene())
    np.testing.assert_array_equal(resize_image(scene()[..., 0], WIDTH, HEIGHT, how), scene()[..., 0])


@pytest.mark.parametrize("how", Resize)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_any_size_fits_any_other(how: Resize, size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 77, np.uint8)
    for width, height in ((8, 8), (8, 64), (72, 24)):
        assert (resize_image(pixels, width, height, how) == 77).all()
        assert resize_image(pixels, width, height, how).shape == (height, width, 3)


def test_the_limit_is_on_pixels_not_on_a_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (50_000, 2), (9, 8, 7)).save(path)
    assert read_image(str(path)).size == (50_000, 2)
    monkeypatch.setattr("diffuse.media.images.MOST_PIXELS", 99_999)
    with pytest.raises(MediaError, match="50000 x 2 pixels are more than"):
        read_image(str(path))


def in_mode(mode: str) -> Image.Image:
    """The scene in one of Pillow's modes, half of it transparent where the mode can say so."""
    picture = Image.fromarray(scene())
    if mode == "I;16":
        return Image.fromarray(scene()[..., 0].astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(np.tile(np.uint8([0, 255]), (HEIGHT, WIDTH // 2))))
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_a_picture_in_memory_is_read_as_from_a_file(mode: str, tmp_path: Path) -> None:
    picture = in_mode(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.tif", exif=exif)
    picture.getexif()[0x0112] = 6
    for read in (read_image, read_mask):
        memory, file = read(picture), read(str(tmp_path / "x.tif"))
        assert np.array_equal(memory.pixels, file.pixels)
        assert (memory.in_memory, file.in_memory) == (True, False)
        assert memory.size == (HEIGHT, WIDTH)


def test_arrays() -> None:
    rgb = scene()
    assert np.array_equal(read_image(rgb).pixels, rgb)
    assert np.array_equal(read_image((rgb / 255).astype(np.float32)).pixels, rgb)
    assert np.array_equal(read_image(rgb[..., :1]).pixels, rgb[..., [0, 0, 0]])
    assert np.array_equal(read_mask(rgb[..., 0] > 99).pixels, np.where(rgb[..., 0] > 99, 255, 0))
    clear = np.dstack([rgb, np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert (read_image(clear).pixels == 255).all() and (read_mask(clear).pixels == 0).all()
    assert read_image(rgb).sha256 == hashlib.sha256(rgb.tobytes()).hexdigest()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 2), np.int64),
        np.full((2, 2), 1.5),
        np.full((2, 2), np.nan),
        np.zeros((0, 2), np.uint8),
        np.zeros((2, 2, 5), np.uint8),
        np.zeros(4, np.uint8),
        [[1, 2], [3, 4]],
        None,
        Image.new("F", (2, 2)),
    ],
)
def test_what_is_no_picture_in_memory_is_refused(wrong: Any) -> None:
    with pytest.raises(MediaError, match=r"^mask: .*(give|save)"):
        read_image(wrong, "mask")


def test_a_reader_keeps_pictures_while_their_files_stay(tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for path, grey in ((first, 10), (second, 20)):
        Image.new("RGB", (20, 10), (grey,) * 3).save(path)
    reader = InputImageCache(max_bytes=2 * 20 * 10 * 3)
    kept = reader.image(str(first))
    assert reader.image(str(first)) is kept
    assert reader.image(str(first), "objective.reference") is not kept  # messages name another field
    assert reader.image(str(first)) is kept
    assert reader.mask(str(first)).pixels.shape == (10, 20)  # the third does not fit: what was used longest ago goes
    assert reader.image(str(first)) is kept
    reader.image(str(second))
    reader.image(str(second), "another field")
    assert reader.image(str(first)) is not kept

    replaced = tmp_path / "new.png"
    Image.new("RGB", (20, 10), (30,) * 3).save(replaced)
    replaced.rename(first)
    assert reader.image(str(first)).pixels.max() == 30
    first.write_bytes(second.read_bytes())
    assert reader.image(str(first)).sha256 == read_image(str(second)).sha256
    first.unlink()
    with pytest.raises(MediaError, match="there is no such file"):
        reader.image(str(first))


def test_the_largest_picture_is_kept_alone(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "x.png")
    reader = InputImageCache(max_bytes=1)
    assert reader.image(str(tmp_path / "x.png")) is reader.image(str(tmp_path / "x.png"))
    picture = np.zeros((4, 4, 3), np.uint8)
    assert reader.image(picture) is not reader.image(picture)  # in memory there is nothing to save
