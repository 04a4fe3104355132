"""Image-to-image of sixteen odd inputs by the command: as of the plain picture that each of them means, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle
import picture_parity
import pytest
from oracle import Variant
from picture_parity import photograph, refused
from PIL import Image
from raw_png import png, wide_png

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = Variant(channels=(16, 32), heads=2, cross=(True, True), vae_channels=(8, 8, 16))
    return oracle.build(tmp_path_factory.mktemp("checkpoint"), variant)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return np.asarray(Image.open(photograph(tmp_path_factory.mktemp("inputs") / "plain.png", SIDE, SIDE)))


# Each writes an odd file, and gives back the picture that it means, made by arithmetic alone.


def rotated(plain: np.ndarray, path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored so that a quarter turn clockwise sets it upright
    Image.fromarray(np.rot90(plain).copy()).save(path, "PNG", exif=exif)
    return plain


def mirrored(plain: np.ndarray, path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 2
    Image.fromarray(plain[:, ::-1].copy()).save(path, "TIFF", exif=exif)
    return plain


def cmyk(plain: np.ndarray, path: Path) -> np.ndarray:
    inks = 255 - np.dstack([plain, np.full(plain.shape[:2], 255, np.uint8)])  # no black
    Image.fromarray(inks, "CMYK").save(path, "TIFF")
    return plain


def palette(plain: np.ndarray, path: Path) -> np.ndarray:
    colours = np.array([[10, 200, 30], [0, 0, 0], [90, 80, 250]], np.uint8)
    indices = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 37 % 3).astype(np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    picture.save(path, "PNG", transparency=1)
    over = colours.copy()
    over[1] = 255
    return over[indices]


def transparent(plain: np.ndarray, path: Path) -> np.ndarray:
    alpha = np.where(np.arange(SIDE)[:, None] < np.arange(SIDE), 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([plain, alpha])).save(path, "WEBP", lossless=True, exact=True)
    return np.where(alpha[..., None] > 0, plain, 255).astype(np.uint8)


def grey(plain: np.ndarray, path: Path) -> np.ndarray:
    Image.fromarray(plain[..., 0].copy()).save(path, "BMP")
    return np.repeat(plain[..., :1], 3, axis=2)


def bits(plain: np.ndarray, path: Path) -> np.ndarray:
    bright = plain[..., 0] > 99
    Image.fromarray(bright).save(path, "PNG")
    return np.repeat(bright[..., None], 3, axis=2).astype(np.uint8) * 255


def sixteen_bits(plain: np.ndarray, path: Path) -> np.ndarray:
    path.write_bytes(wide_png(plain[..., 0].astype(np.uint16) * 257))
    return np.repeat(plain[..., :1], 3, axis=2)


def sixteen_bits_in_colour(plain: np.ndarray, path: Path) -> np.ndarray:
    path.write_bytes(wide_png(plain.astype(np.uint16) * 257))
    return plain


def animated(plain: np.ndarray, path: Path) -> np.ndarray:
    frames = [Image.fromarray(plain), Image.new("RGB", (SIDE, SIDE), "red")]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])
    return plain


def one_pixel(plain: np.ndarray, path: Path) -> np.ndarray:
    Image.new("RGB", (1, 1), (40, 90, 200)).save(path, "PNG")
    return np.full((SIDE, SIDE, 3), (40, 90, 200), np.uint8)


def one_row(plain: np.ndarray, path: Path) -> np.ndarray:
    Image.fromarray(plain[:1].copy()).save(path, "PNG")
    return np.repeat(plain[:1], SIDE, axis=0)


RIGHT: tuple[Callable[[np.ndarray, Path], np.ndarray], ...] = (
    *(rotated, mirrored, cmyk, palette, transparent, grey, bits, sixteen_bits, sixteen_bits_in_colour, animated),
    *(one_pixel, one_row),
)


@pytest.mark.parametrize("write", RIGHT, ids=lambda write: write.__name__)
def test_right(
    write: Callable[[np.ndarray, Path], np.ndarray], folder: Path, plain: np.ndarray, tmp_path: Path
) -> None:
    odd, meant = tmp_path / "odd", tmp_path / "meant.png"
    Image.fromarray(write(plain, odd)).save(meant)
    request = {"num_inference_steps": 2, "strength": 0.5, "guidance_scale": 1, "width": SIDE, "height": SIDE}
    found, expected = (
        picture_parity.made(folder, tmp_path / "out", input_image=path, **request) for path in (odd, meant)
    )
    np.testing.assert_array_equal(found, expected)


def truncated(path: Path) -> None:
    photograph(path.with_suffix(".jpg"), 300, 300)
    path.write_bytes(path.with_suffix(".jpg").read_bytes()[:4000])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "is damaged or cut short"),
    "bomb": (lambda path: path.write_bytes(png((50_000, 50_000, 8, 2), b"\0" * 999)), "more than 134 million pixels"),
    "text": (lambda path: path.write_text("a cat\n"), "is not a picture that can be read"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, folder: Path, tmp_path: Path) -> None:
    write, said = REFUSED[name]
    write(tmp_path / "odd")
    odd, out = tmp_path / "odd", tmp_path / "out"
    done = picture_parity.run(folder, out, input_image=odd)
    assert done.err.startswith(f"diffuse: input_image={odd}: ")
    refused(done, said, out)
