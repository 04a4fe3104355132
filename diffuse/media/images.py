"""Input images of a request: any common file as plain RGB, and resized to the request. In Python an image may be in
memory instead.

An image is read as a viewer shows it: turned by the orientation in its EXIF data, over white where it is transparent,
more than 8 bits a channel scaled to 8, and the first frame of an animation. Colour profiles are applied to CMYK alone;
for RGB they are ignored, as diffusers ignores them. What is odd in PNG and TIFF files is in `png` and `tiff`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from diffuse.errors import ConfigError, MediaError, first_line
from diffuse.media.files import pillow_warnings
from diffuse.media.png import SIGNATURE, drop_metadata, has_wide_rgb, scale_transparency, transparent_places
from diffuse.media.tiff import check_tiff, grey_depth, is_tiff, mend_colormap
from diffuse.paths import user_path
from diffuse.schema import Resize

# The formats that Pillow reads without other programs; some of the rest start one, such as Ghostscript.
INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "AVIF", "JPEG2000", "QOI", "ICO")
MOST_PIXELS = 2**27  # a file of a few kilobytes may claim billions of them

_Read = TypeVar("_Read")
_WHITE, _BLACK = 255, 0
# MP4 and QuickTime but for pictures in such files, Matroska and WebM, AVI, MPEG transport streams.
_FILMS = re.compile(rb".{4}ftyp(?!avi[fs]|hei|hev|mif|msf)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |\x47.{187}\x47", re.DOTALL)
_PHOTOGRAPHS = ("MPO",)  # the further images in such a file are previews, or another view of the same
_EXIF_ORIENTATION = 0x0112
# How a stored image is turned upright: EXIF 2.32, tag 0x0112.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class InputImage:
    """An image that a request starts from. `pixels` is uint8, RGB `[H, W, 3]`, or `[H, W]` for a mask."""

    pixels: np.ndarray
    sha256: str  # of the file, or of the RGB bytes of an image that was in memory
    notes: tuple[str, ...] = ()  # for the user: how it was read, a line each
    in_memory: bool = False
    _resized: dict[tuple[int, int, Resize], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of the pixels."""
        return self.pixels.nbytes

    @property
    def pixels_sha256(self) -> str:
        """The value of `sha256` if the image had been in memory."""
        grey = self.pixels.ndim == 2
        rgb = np.repeat(self.pixels[..., None], 3, axis=2) if grey else self.pixels
        return hashlib.sha256(rgb.tobytes()).hexdigest()

    def resize(self, width: int, height: int, mode: Resize) -> np.ndarray:
        """Returns the pixels, `[H, W, 3]` or `[H, W]`, by `resize_image`.

        The last result is kept: requests that start from one image mostly ask for one size.
        """
        key = width, height, mode
        if key not in self._resized:
            self._resized.clear()
            self._resized[key] = resize_image(self.pixels, *key)
        return self._resized[key]


class InputImageCache:
    """Input images of many requests. One that several start from is read once, while its file does not change and
    there is room for it: the images that were asked for last are kept, up to `max_bytes` of pixels."""

    def __init__(self, max_bytes: int = 2**28) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def image(self, source: str | Image.Image | np.ndarray, field: str = "input_image") -> InputImage:
        """See `read_image`. An array is `[H, W]`, `[H, W, 3]` or `[H, W, 4]`."""
        return self.get(read_image, source, field)

    def mask(self, source: str | Image.Image | np.ndarray, field: str = "mask_image") -> InputImage:
        """See `read_mask`. An array is `[H, W]`, `[H, W, 3]` or `[H, W, 4]`."""
        return self.get(read_mask, source, field)

    def get(self, read: Callable[[Any, str], _Read], source: Any, field: str) -> _Read:
        """Returns what `read` makes of a source, which has `nbytes`."""
        state = _file_state(source) if isinstance(source, str) else None
        if state is None:
            return read(source, field)
        key = read, source, field, state
        if key not in self._images:
            self._images[key] = read(source, field)
        self._images.move_to_end(key)
        while len(self._images) > 1 and sum(each.nbytes for each in self._images.values()) > self._max_bytes:
            self._images.popitem(last=False)
        found: _Read = self._images[key]
        return found


def _file_state(path: str) -> tuple[int, ...] | None:
    """Returns values that change when a file is written or replaced; None if it is missing, which reading reports."""
    try:
        status = os.stat(user_path(path))
    except (OSError, ValueError, ConfigError):
        return None
    if stat.S_ISDIR(status.st_mode):  # of which no value says that a file in it is another
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_image(source: str | Image.Image | np.ndarray, field: str = "input_image") -> InputImage:
    """Reads the image in a file, or one in memory, as RGB `[H, W, 3]`; transparent places are white.

    Args:
        source: a path, a PIL image, or an array: grey `[H, W]`, RGB `[H, W, 3]` or RGBA `[H, W, 4]`, of uint8, of
            floating point from 0 to 1, or of bool.
        field: how messages call it.

    Raises:
        MediaError: there is no such file, it is no image, is damaged, or claims more than `MOST_PIXELS`.
    """
    return _from_file(source, field, _WHITE) if isinstance(source, str) else _from_memory(source, field, _WHITE)


def read_mask(source: str | Image.Image | np.ndarray, field: str = "mask_image") -> InputImage:
    """Reads the mask in a file, or one in memory, as grey `[H, W]`.

    White is painted anew, black is kept, and transparent places are kept too. A mask of 0 and 1, as programs for
    segmentation write it, is understood, and says so in its notes.

    Raises:
        MediaError: as `read_image`.
    """
    image = _from_file(source, field, _BLACK) if isinstance(source, str) else _from_memory(source, field, _BLACK)
    grey = np.asarray(Image.fromarray(image.pixels).convert("L"))
    if grey.max() != 1:
        return replace(image, pixels=grey)
    label = f"{field}={source}" if isinstance(source, str) else field
    note = f"{label}: holds 0 and 1 only; 1 is taken for white"
    return replace(image, pixels=grey * np.uint8(_WHITE), notes=(*image.notes, note))


def file_sha256(path: str) -> str | None:
    """Returns the SHA-256 of a file's bytes; None if there is no such file, or it cannot be read."""
    try:
        with open(user_path(path), "rb", opener=_open_without_waiting) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if _is_regular(file.fileno()) else None
    except (OSError, ValueError, ConfigError):
        return None


def resize_image(pixels: np.ndarray, width: int, height: int, mode: Resize) -> np.ndarray:
    """Resamples `[h, w, 3]` or `[h, w]` by Lanczos to `[height, width, 3]` or `[height, width]`.

    Args:
        mode: `stretch` changes the proportions; `crop` cuts off both sides equally; `pad` shows the whole image and
            repeats its outermost pixels beside it.
    """
    image = Image.fromarray(pixels)
    if mode is Resize.stretch:
        return _resample(image, width, height)
    scales = width / image.width, height / image.height
    if mode is Resize.crop:
        scale = max(scales)
        across, down = min(width / scale, image.width), min(height / scale, image.height)
        left, top = (image.width - across) / 2, (image.height - down) / 2
        return _resample(image, width, height, (left, top, left + across, top + down))
    scale = min(scales)
    across, down = (
        max(1, min(round(side * scale), most)) for side, most in zip(image.size, (width, height), strict=True)
    )
    before = (height - down) // 2, (width - across) // 2
    after = height - down - before[0], width - across - before[1]
    borders = [(before[0], after[0]), (before[1], after[1]), (0, 0)]
    return np.pad(_resample(image, across, down), borders[: pixels.ndim], mode="edge")


def _resample(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _from_file(path: str, field: str, background: int) -> InputImage:
    label = f"{field}={path}"
    content = _content(path, label)
    # Pillow warns of odd EXIF data and the like through Python's warnings; what it can decode is decoded.
    with pillow_warnings("ignore"):
        image = _open(content, label)
        try:
            notes = check_tiff(image, content, label)
            frames = getattr(image, "n_frames", 1)
            pixels = _pixels(image, content, background, label)
        except MediaError:
            raise
        except MemoryError:
            raise MediaError(f"{label}: {_size(image)} do not fit in memory; scale the picture down first") from None
        except Exception as error:  # a decoder says in many ways that what it reads makes no sense
            reason = first_line(error)
            raise MediaError(f"{label}: is damaged or cut short ({reason}); save or copy it again") from error
    if frames > 1 and image.format not in _PHOTOGRAPHS:
        notes.append(f"{label}: holds {frames} frames; the first is taken")
    return InputImage(pixels, hashlib.sha256(content).hexdigest(), tuple(notes))


def _from_memory(source: Image.Image | np.ndarray, field: str, background: int) -> InputImage:
    """Reads an image in memory by the same rules."""
    image = source if isinstance(source, Image.Image) else _from_array(source, field)
    try:
        notes = check_tiff(image, None, field)
        pixels = _pixels(image, None, background, field)
    except MediaError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise MediaError(f"{field}: cannot be read ({reason}); give another picture") from error
    return InputImage(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), tuple(notes), in_memory=True)


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


def _content(path: str, label: str) -> bytes:
    try:
        with open(user_path(path), "rb", opener=_open_without_waiting) as file:
            if not _is_regular(file.fileno()):
                raise MediaError(f"{label}: is no file; give one picture")
            return file.read()
    except IsADirectoryError:
        raise MediaError(f"{label}: is a folder; give one picture in it") from None
    except FileNotFoundError:
        raise MediaError(f"{label}: there is no such file") from None
    except ConfigError as error:
        raise MediaError(f"{label.removesuffix(path)}{error}") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{label}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or a named pipe would be waited for


def _open(content: bytes, label: str) -> Image.Image:
    """Returns the image with its header read, and nothing else."""
    try:
        image = Image.open(io.BytesIO(drop_metadata(content)), formats=INPUT_FORMATS)
    except Image.DecompressionBombError:
        raise MediaError(f"{label}: has more than {_millions()} million pixels; scale it down first") from None
    except UnidentifiedImageError:
        what = "is empty" if not content else "is not a picture that can be read"
        if _FILMS.match(content):
            others = "; input_video=FILE goes on from a film" if label.startswith("input_image") else ""
            raise MediaError(f"{label}: is a film; give a picture, such as one of its frames{others}") from None
        if is_tiff(content):
            raise MediaError(f"{label}: is a TIFF that is damaged or of a rare kind; save it as 8-bit RGB") from None
        if content.startswith(SIGNATURE):
            raise MediaError(f"{label}: is a PNG that is damaged or cut short; save or copy it again") from None
        raise MediaError(f"{label}: {what}; give a PNG, JPG, WebP, GIF, TIFF, BMP or AVIF file") from None
    except Exception as error:
        reason = first_line(error)
        raise MediaError(f"{label}: is damaged or cut short ({reason}); save or copy it again") from error
    if image.width * image.height > MOST_PIXELS:
        raise MediaError(f"{label}: {_size(image)} are more than {_millions()} million; scale it down first")
    return image


def _pixels(image: Image.Image, content: bytes | None, background: int, label: str) -> np.ndarray:
    """Returns an open image as RGB `[H, W, 3]`, upright, with the grey `background` where it is transparent."""
    scale_transparency(image)
    wide = has_wide_rgb(image)
    image.load()  # which Pillow puts off
    mend_colormap(image)
    places = transparent_places(image, content, wide)
    if places is None:
        return np.asarray(_upright(image, _opaque(image, background, label)))
    pixels = np.array(image)
    pixels[places] = background
    return np.asarray(_upright(image, Image.fromarray(pixels)))


def _upright(image: Image.Image, result: Image.Image) -> Image.Image:
    """Turns and mirrors `result` as the EXIF orientation of `image` says.

    EXIF data are read and never written: those that cannot be written again turn an image as well as any others. Those
    that cannot be read are ignored.
    """
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return result
    return result if turn is None else result.transpose(turn)


def _opaque(image: Image.Image, background: int, label: str) -> Image.Image:
    """Returns 8-bit RGB, with the grey `background` where the image is transparent."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _from_wide_grey(image, background)
    if image.mode in ("I", "F", "LAB"):
        kind = {"I": "32-bit numbers", "F": "floating-point numbers", "LAB": "Lab colours"}[image.mode]
        raise MediaError(f"{label}: holds {kind}; save it as RGB of 8 or 16 bits")
    if image.mode == "CMYK":
        return _from_inks(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    under = Image.new("RGBA", image.size, (background, background, background, 255))
    straight = image.convert("LA") if image.mode == "La" else image  # grey that is multiplied by its alpha
    return Image.alpha_composite(under, straight.convert("RGBA")).convert("RGB")


def _from_inks(image: Image.Image) -> Image.Image:
    """Converts CMYK to RGB by the file's own profile: presses differ, and Pillow's formula knows none of them."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            inks, light = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, inks, light, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ImportError):  # damaged, of another kind, or Pillow is without LittleCMS
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image, background: int) -> Image.Image:
    """Scales grey of 9 to 16 bits to 8: Pillow's own conversion would cut off everything above 255."""
    wide = np.asarray(image).astype(np.uint32)  # [H, W]
    largest, white_is_zero = grey_depth(image)
    if wide.max() <= 1:  # a mask of 0 and 1, or black: it stays what it is
        grey = wide.astype(np.uint8)
    else:
        grey = ((np.minimum(wide, largest) * 255 + largest // 2) // largest).astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[wide == transparent] = background
    return Image.fromarray(grey).convert("RGB")


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height} pixels"


def _millions() -> int:
    return MOST_PIXELS // 10**6
