"""Pictures that a request starts from: any common file as plain RGB, and made to fit the size of the request. In Python
a picture may be in memory instead.

What a viewer shows is what counts: the orientation in the EXIF data is followed, transparency lies over white, 16 bits
a channel are scaled to 8, and of an animation the first frame is taken. Colour profiles count for inks alone, CMYK; of
RGB they are left out, as the field's reference leaves them out.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from diffuse.errors import MediaError
from diffuse.schema import Resize

# What Pillow reads by itself: some of its other formats start programs, such as Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "AVIF", "JPEG2000", "QOI", "ICO")
MOST_PIXELS = 2**27  # a file of a few kilobytes may claim billions of them

_WHITE, _BLACK = 255, 0
_LARGEST_16_BITS = 65535
_PHOTOGRAPHS = ("MPO",)  # the further pictures in such a file are previews, or another view of the same
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PictureInput:
    """A picture as it is used. `pixels` is uint8, RGB `[H, W, 3]`, or of a mask `[H, W]`."""

    pixels: np.ndarray
    sha256: str  # of the file, or of the RGB bytes of a picture that was in memory
    notes: tuple[str, ...] = ()  # what the user should know of how it was read
    in_memory: bool = False
    _fitted: dict[tuple[int, int, Resize], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def pixels_sha256(self) -> str:
        """What `sha256` would be, had the picture been in memory."""
        grey = self.pixels.ndim == 2
        rgb = np.repeat(self.pixels[..., None], 3, axis=2) if grey else self.pixels
        return hashlib.sha256(rgb.tobytes()).hexdigest()

    def fitted(self, width: int, height: int, how: Resize) -> np.ndarray:
        """See `fit`. The last is kept: requests that start from one picture mostly ask for one size."""
        asked = width, height, how
        if asked not in self._fitted:
            self._fitted.clear()
            self._fitted[asked] = fit(self.pixels, *asked)
        return self._fitted[asked]


class Reader:
    """Reads the pictures of many requests. One that several start from is read once, while its file stays as it is and
    there is room for it: the pictures that were asked for last are kept, up to `most` bytes of pixels."""

    def __init__(self, most: int = 2**28) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Any, ...], PictureInput] = OrderedDict()

    def picture(self, source: str | Image.Image | np.ndarray, field: str = "input_image") -> PictureInput:
        """See `read_picture`."""
        return self._once(read_picture, source, field)

    def mask(self, source: str | Image.Image | np.ndarray, field: str = "mask_image") -> PictureInput:
        """See `read_mask`."""
        return self._once(read_mask, source, field)

    def _once(self, read: Callable[[Any, str], PictureInput], source: Any, field: str) -> PictureInput:
        state = _state(source) if isinstance(source, str) else None
        if state is None:
            return read(source, field)
        key = read, source, field, state
        if key not in self._kept:
            self._kept[key] = read(source, field)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(kept.pixels.nbytes for kept in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key]


def _state(path: str) -> tuple[int, ...] | None:
    """What becomes another when a file is written or replaced; None where there is none, as reading it will tell."""
    try:
        of = os.stat(Path(path).expanduser())
    except (OSError, ValueError, RuntimeError):
        return None
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns


def read_picture(source: str | Image.Image | np.ndarray, field: str = "input_image") -> PictureInput:
    """The picture in a file, or one in memory, as RGB; transparent places are white. `field` is what messages call it.

    An array is grey `[H, W]`, RGB `[H, W, 3]` or RGBA `[H, W, 4]`: uint8, floating point from 0 to 1, or bool.

    Raises:
        MediaError: there is no such file, it is no picture, is damaged, or claims more than `MOST_PIXELS`.
    """
    return _read(source, field, _WHITE) if isinstance(source, str) else _taken(source, field, _WHITE)


def read_mask(source: str | Image.Image | np.ndarray, field: str = "mask_image") -> PictureInput:
    """The mask in a file, or one in memory, as grey: white is painted anew, black is kept, and so is what is
    transparent.

    Raises:
        MediaError: as `read_picture`.
    """
    read = _read(source, field, _BLACK) if isinstance(source, str) else _taken(source, field, _BLACK)
    return replace(read, pixels=np.asarray(Image.fromarray(read.pixels).convert("L")))


def file_sha256(path: str) -> str | None:
    """The SHA-256 of a file's bytes; None if there is no such file, or it cannot be read. Nothing is made of them."""
    try:
        with open(Path(path).expanduser(), "rb", opener=_without_waiting) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if _is_regular(file.fileno()) else None
    except (OSError, ValueError, RuntimeError):
        return None


def fit(pixels: np.ndarray, width: int, height: int, how: Resize) -> np.ndarray:
    """`[h, w, 3]` or `[h, w]` -> the same of `height` and `width` pixels, resampled by Lanczos.

    `stretch` changes the proportions; `crop` cuts off what is too much at both sides; `pad` shows the whole picture and
    repeats its outermost pixels beside it.
    """
    picture = Image.fromarray(pixels)
    if how is Resize.stretch:
        return _resampled(picture, width, height)
    scales = width / picture.width, height / picture.height
    if how is Resize.crop:
        scale = max(scales)
        across, down = min(width / scale, picture.width), min(height / scale, picture.height)
        left, top = (picture.width - across) / 2, (picture.height - down) / 2
        return _resampled(picture, width, height, (left, top, left + across, top + down))
    scale = min(scales)
    across, down = (
        max(1, min(round(side * scale), most)) for side, most in zip(picture.size, (width, height), strict=True)
    )
    before = (height - down) // 2, (width - across) // 2
    after = height - down - before[0], width - across - before[1]
    borders = [(before[0], after[0]), (before[1], after[1]), (0, 0)]
    return np.pad(_resampled(picture, across, down), borders[: pixels.ndim], mode="edge")


def _resampled(
    picture: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _read(path: str, field: str, background: int) -> PictureInput:
    shown = f"{field}={path}"
    content = _content(path, shown)
    # Pillow warns of odd EXIF data and the like through Python's warnings; what it can decode is decoded.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _opened(content, shown)
        try:
            frames = getattr(picture, "n_frames", 1)
            picture.load()
            pixels = np.asarray(_opaque(_upright(picture), background, shown))
        except MediaError:
            raise
        except MemoryError:
            raise MediaError(f"{shown}: {_size(picture)} do not fit in memory; scale the picture down first") from None
        except Exception as error:  # a decoder says in many ways that what it reads makes no sense
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise MediaError(f"{shown}: is damaged or cut short ({reason}); save or copy it again") from error
    notes = []
    if frames > 1 and picture.format not in _PHOTOGRAPHS:
        notes.append(f"{shown}: holds {frames} frames; the first is taken")
    return PictureInput(pixels, hashlib.sha256(content).hexdigest(), tuple(notes))


def _taken(source: Image.Image | np.ndarray, field: str, background: int) -> PictureInput:
    """A picture in memory, by the same rules."""
    picture = source if isinstance(source, Image.Image) else _from_array(source, field)
    try:
        picture.load()  # which Pillow puts off
        pixels = np.asarray(_opaque(_upright(picture), background, field))
    except MediaError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MediaError(f"{field}: cannot be read ({reason}); give another picture") from error
    return PictureInput(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), in_memory=True)


def _from_array(source: object, field: str) -> Image.Image:
    if not isinstance(source, np.ndarray):
        raise MediaError(f"{field}: is of type {type(source).__name__}; give a path, a PIL image or a NumPy array")
    array, kind = source, source.dtype
    if kind == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(kind, np.floating) and array.size and array.min() >= 0 and array.max() <= 1:  # which NaN is not
        array = (array * 255).round().astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not array.size or array.shape[2:] not in ((), (3,), (4,)) or array.ndim < 2:
        raise MediaError(
            f"{field}: is an array {list(source.shape)} of {kind}; give [H, W], [H, W, 3] or [H, W, 4] of uint8, or of "
            "numbers from 0 to 1"
        )
    return Image.fromarray(array)


def _content(path: str, shown: str) -> bytes:
    try:
        with open(Path(path).expanduser(), "rb", opener=_without_waiting) as file:
            if not _is_regular(file.fileno()):
                raise MediaError(f"{shown}: is no file; give one picture")
            return file.read()
    except IsADirectoryError:
        raise MediaError(f"{shown}: is a folder; give one picture in it") from None
    except FileNotFoundError:
        raise MediaError(f"{shown}: there is no such file") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or a named pipe would be waited for


def _opened(content: bytes, shown: str) -> Image.Image:
    """The picture with its header read, and nothing else."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise MediaError(f"{shown}: has more than {_millions()} million pixels; scale it down first") from None
    except UnidentifiedImageError:
        what = "is empty" if not content else "is not a picture that can be read"
        raise MediaError(f"{shown}: {what}; give a PNG, JPG, WebP, GIF, TIFF, BMP or AVIF file") from None
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MediaError(f"{shown}: is damaged or cut short ({reason}); save or copy it again") from error
    if picture.width * picture.height > MOST_PIXELS:
        raise MediaError(f"{shown}: {_size(picture)} are more than {_millions()} million; scale it down first")
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """Turned and mirrored as the EXIF orientation says; EXIF data that cannot be read say nothing."""
    try:
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:
        return picture
    return ImageOps.exif_transpose(picture) if turned else picture


def _opaque(picture: Image.Image, background: int, shown: str) -> Image.Image:
    """8-bit RGB, with the grey `background` where the picture is transparent."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        return _from_16_bits(picture, background)
    if picture.mode in ("I", "F", "LAB"):
        kind = {"I": "32-bit numbers", "F": "floating-point numbers", "LAB": "Lab colours"}[picture.mode]
        raise MediaError(f"{shown}: holds {kind}; save it as RGB of 8 or 16 bits")
    if picture.mode == "CMYK":
        return _from_inks(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    under = Image.new("RGBA", picture.size, (background, background, background, 255))
    return Image.alpha_composite(under, picture.convert("RGBA")).convert("RGB")


def _from_inks(picture: Image.Image) -> Image.Image:
    """CMYK, by the file's own profile: presses differ, and Pillow's formula makes every ink a colour of light."""
    profile = picture.info.get("icc_profile")
    if profile:
        try:
            inks, light = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(picture, inks, light, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ImportError):  # damaged, of another kind, or Pillow is without LittleCMS
            found = None
        if found is not None:
            return found
    return picture.convert("RGB")


def _from_16_bits(picture: Image.Image, background: int) -> Image.Image:
    """Grey of 16 bits, scaled: Pillow's own conversion would cut everything above 255 off."""
    wide = np.asarray(picture).astype(np.uint32)  # [H, W]
    grey = ((wide * 255 + _LARGEST_16_BITS // 2) // _LARGEST_16_BITS).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if transparent is not None:
        grey[wide == transparent] = background
    return Image.fromarray(grey).convert("RGB")


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height} pixels"


def _millions() -> int:
    return MOST_PIXELS // 10**6
