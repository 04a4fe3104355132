"""Pictures in files: PNG, JPG and WebP with the record inside them, written whole or not at all.

The record is JSON under `diffuse` in a PNG, and in the EXIF ImageDescription of a JPG or WebP. Beside it goes the line
of parameters that picture viewers know from AUTOMATIC1111's web UI: PNG's `parameters`, EXIF's UserComment.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from diffuse.errors import MediaError, RunError
from diffuse.media import video
from diffuse.media.pixels import pixels_sha256
from diffuse.schema import ImageFormat, PromptSyntax

log = logging.getLogger(__name__)

TEMPORARY = ".diffuse-"  # every unfinished file begins with this and ends with .tmp
RECORD = "diffuse"
PARAMETERS = "parameters"

_STEM_CHARACTERS = 50
_NAME_BYTES = 200  # file systems allow 255; the number and the extension need some
_MOST_NUMBERS = 100_000
_EXIF_BYTES = 65533 - 6  # a JPEG marker's content, less "Exif\0\0"
_LARGEST_SIDE = {ImageFormat.jpg: 65535, ImageFormat.webp: 16383}  # pixels; PNG's is 2 ** 31 - 1
_FULL_CHROMA = 90  # from this JPG quality on, colour is stored at full resolution
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)  # Windows keeps these
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_SURROGATE = re.compile("[\ud800-\udfff]")  # how undecodable bytes of the command line arrive


def file_stem(prompt: str, seed: int, name: str | None = None) -> str:
    """A file name without extension: `name` where it is given, otherwise from the prompt and the seed.

    Of a prompt, every character outside A-Z, a-z and 0-9 becomes `_`, and 50 are kept. Raises MediaError for a `name`
    that is more than a file's name, or that some system cannot store.
    """
    if name is not None:
        return _checked(name)
    words = re.sub(r"[^A-Za-z0-9]", "_", prompt)[:_STEM_CHARACTERS]
    return f"{words if words.strip('_') else 'image'}_{seed}"


def _checked(name: str) -> str:
    wrong = ""
    if not name.strip(". "):
        wrong = "is empty"
    elif match := _FORBIDDEN.search(name):
        wrong = f"holds {match[0]!r}: it names a file, and output.dir the folder"
    elif name[0] == "." or name[-1] in ". " or name[0] == " ":
        wrong = "begins or ends with a dot or a space"
    elif _DEVICE.fullmatch(name):
        wrong = "is the name of a device on Windows"
    if wrong:
        raise MediaError(f"output.name={name!r} {wrong}; choose a plain name without extension")
    return name.encode()[:_NAME_BYTES].decode(errors="ignore").rstrip(". ")


def check_output(folder: Path) -> None:
    """Find out whether files can be made in `folder`, or in the folder it would be made in. Nothing is left behind.

    Raises MediaError with what is in the way.
    """
    there = Path(os.path.abspath(folder))
    try:
        while not _exists(there):
            there = there.parent
        if not there.is_dir():
            raise MediaError(f"output.dir={folder}: {there} is a file; choose a folder")
        # Trying is the only sure answer: permission bits say nothing of read-only mounts, quotas and the superuser.
        probe = there / _temporary_name()
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        raise MediaError(f"output.dir={folder} cannot be written: {_reason(error)}; choose another folder") from error


def _exists(path: Path) -> bool:
    """As Path.exists(), which however takes a name that is too long, or behind a closed door, for a free one."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def save_image(
    image: np.ndarray,
    folder: Path,
    stem: str,
    *,
    format: ImageFormat | str = ImageFormat.png,
    quality: int = 95,
    record: Mapping[str, Any],
    parameters: str = "",
) -> Path:
    """Write one picture, uint8 RGB `[H, W, 3]`, with its record, and return where.

    The file appears under its name complete and on disk. An existing file is never overwritten: `_1`, `_2` and so on
    are appended to the name, also when several processes save at once. `quality`, 1 to 100, is that of JPG and WebP;
    PNG loses nothing.

    Raises:
        MediaError: the name, the format or the quality cannot be used, or the picture is too large for the format.
        RunError: the file could not be written, for instance because the disk is full; nothing of it is left.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    stem = _checked(stem)
    kind = _format(format)
    check_quality(quality)
    content = _encode(image, kind, quality, record, parameters)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / _temporary_name()
        _write(temporary, content)
        path = _publish(temporary, folder, stem, kind.value)
        _sync_folder(folder)
        return path
    except OSError as error:
        what = f"{stem}.{kind.value} could not be saved in {folder}"
        raise RunError(f"{what}: {_reason(error)}; make room or set output.dir elsewhere") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_quality(quality: int) -> None:
    """Raises MediaError unless `quality` is a whole number from 1 to 100."""
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise MediaError(f"output.quality={quality} must be a whole number from 1 to 100")


def _format(format: ImageFormat | str) -> ImageFormat:
    try:
        return ImageFormat(format)
    except ValueError:
        choices = ", ".join(choice.value for choice in ImageFormat)
        raise MediaError(f"output.format={format} is not a format; choose one of {choices}") from None


def _temporary_name() -> str:
    return f"{TEMPORARY}{secrets.token_hex(8)}.tmp"


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _publish(temporary: Path, folder: Path, stem: str, extension: str) -> Path:
    """Give the finished file the first free name. Only one process can succeed with a name, and none overwrites it."""
    for number in range(_MOST_NUMBERS):
        path = folder / (f"{stem}_{number}.{extension}" if number else f"{stem}.{extension}")
        try:
            _move(temporary, path)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{_MOST_NUMBERS} files of that name exist")


def _move(temporary: Path, path: Path) -> None:
    if os.name == "nt":
        os.rename(temporary, path)  # refuses to overwrite, there
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: an empty file claims the name, and the finished one takes its place.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut. Not every system can; the file itself is safe on disk already."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        log.debug("%s cannot be synchronised", folder)
    finally:
        os.close(descriptor)


def _encode(image: np.ndarray, kind: ImageFormat, quality: int, record: Mapping[str, Any], parameters: str) -> bytes:
    height, width = image.shape[:2]
    largest = _LARGEST_SIDE.get(kind)
    if largest and max(height, width) > largest:
        raise MediaError(f"{kind.value} holds at most {largest} pixels a side, not {width} x {height}; use png")
    parameters = _SURROGATE.sub("\ufffd", parameters).replace("\0", " ")
    picture = Image.fromarray(np.ascontiguousarray(image))
    out = io.BytesIO()
    if kind is ImageFormat.png:
        chunks = PngImagePlugin.PngInfo()  # tEXt, and iTXt where the text is not latin-1
        chunks.add_text(RECORD, _json(record, escape=False))
        chunks.add_text(PARAMETERS, parameters)
        picture.save(out, "PNG", pnginfo=chunks)
    elif kind is ImageFormat.jpg:
        chroma = 0 if quality >= _FULL_CHROMA else 2
        exif = _jpeg_exif(record, parameters)
        picture.save(out, "JPEG", quality=quality, subsampling=chroma, optimize=True, exif=exif)
    else:
        picture.save(out, "WEBP", quality=quality, exif=_exif(_json(record, escape=True), parameters))
    return out.getvalue()


def _json(record: Mapping[str, Any], *, escape: bool) -> str:
    """EXIF strings are ASCII: there, everything else is escaped. A lone surrogate is no character anywhere."""
    text = json.dumps(record, ensure_ascii=escape, allow_nan=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _jpeg_exif(record: Mapping[str, Any], parameters: str) -> Image.Exif:
    """As much as a JPG's 64 KiB hold: everything, or the record, or what finds the record in the tracking store."""
    for text in (parameters, ""):
        exif = _exif(_json(record, escape=True), text)
        if len(exif.tobytes()) <= _EXIF_BYTES:
            return exif
    log.warning("the record is longer than the 64 KiB that a JPG can hold and is not in it; use output.format=png")
    return _exif(_json({"left_out": "longer than 64 KiB", "image": record.get("image")}, escape=True), "")


def _exif(record: str, parameters: str) -> Image.Exif:
    exif = Image.Exif()
    exif.endian = ">"  # the UTF-16 below is in this order, as AUTOMATIC1111 writes it
    exif[ExifTags.Base.ImageDescription] = record
    if parameters:
        comment = b"UNICODE\0" + parameters.encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif


def read_record(path: Path) -> dict[str, Any]:
    """The record inside a picture or a video. It is data from a file: nothing in it has been checked.

    Raises MediaError where there is no such file, or no record in it.
    """
    if path.suffix.lower() in video.SUFFIXES:
        return video.read_record(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            text: Any
            if picture.format == "PNG":
                text = picture.info.get(RECORD)
            else:
                text = picture.getexif().get(ExifTags.Base.ImageDescription)
    except UnidentifiedImageError:
        raise MediaError(f"{path} is no PNG, JPG or WebP picture, or is damaged; give one that diffuse made") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path} cannot be read: {_reason(error)}; give a picture that diffuse made") from error
    try:
        record = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise MediaError(f"{path} holds no record of diffuse's; it was made or rewritten by another program")
    return record


def file_sha256(path: Path) -> str:
    """`pixels_sha256` of the picture in a file, which was RGB when it was saved.

    Raises MediaError where there is no picture in it that can be read to its end.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            return pixels_sha256(np.asarray(picture.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path} cannot be read: {_reason(error)}; it may be damaged") from error


def parameters_text(record: Mapping[str, Any], sampler: str | None = None) -> str:
    """Returns what AUTOMATIC1111's web UI writes beside a picture, from the record of one image (record.of_image).

    The prompt, `Negative prompt: ...` unless it is empty, and one line of `Name: value` pairs, in which a value with a
    comma, a colon or a line break is JSON-quoted.

    Args:
        record: of one image.
        sampler: the name under which viewers know the sampler; None for the scheduler's own name.
    """
    request, weights = record["request"], record["weights"]
    texts = request["prompt"] + (request["negative_prompt"] or "")
    literal = request.get("prompt_syntax") != PromptSyntax.weighted.name and any(c in texts for c in "([")
    parts = weights.get("components", {})
    model, vae = parts.get("unet", weights), parts.get("vae", {})
    pairs = {
        "Steps": request["num_inference_steps"],
        "Sampler": sampler or record["config"]["scheduler"]["name"],
        "CFG scale": f"{request['guidance_scale']:g}",
        "Seed": record["image"]["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Denoising strength": "" if request.get("strength") is None else f"{request['strength']:g}",
        "Emphasis": "None" if literal else "",  # there, brackets are weights unless this is said
        "Model hash": (model.get("sha256") or "")[:10],
        "Model": Path(str(model.get("source") or record["config"]["model"]["name"])).name,
        "VAE hash": vae.get("sha256", "")[:10],
        "VAE": Path(str(vae.get("source", ""))).name,
        "Version": f"diffuse {record['diffuse']}",
    }
    lines = [request["prompt"].strip()]
    if request["negative_prompt"]:
        lines.append(f"Negative prompt: {request['negative_prompt'].strip()}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items() if value != ""))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
