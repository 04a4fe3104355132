"""Recorded runs: records read from the files that hold one, with the digests and pixels that are known.

A record is in an image, in a film, in a folder of frames, in a run's `record.json`, and in the `job.json` of a sweep.
A file is data from whoever sent it: here it is read, and checked to be a record.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.errors import ConfigError, MediaError
from diffuse.media.formats import VideoFormat, format_of, is_lossless, is_still, is_video
from diffuse.media.images import read_image
from diffuse.media.load import read_record
from diffuse.media.video import FIRST_FRAME, Video, is_frames_folder
from diffuse.record.validate import check_record
from diffuse.record.values import short_text

MAX_BYTES = 4 << 20  # of a JSON file; a record has some 10 KiB, and 100 bytes more for each image
_JOB_VERSION = 1  # of a job.json


@dataclass(frozen=True)
class RecordedRun:
    """A record, with the digests and pixels of its images by their index in the run, from 0."""

    label: str
    """How messages call it."""
    record: dict[str, Any]
    digests: Mapping[int, str]
    """The SHA-256 of the pixels of each image: all of the run, or the one of the file."""
    pixels: Mapping[int, np.ndarray] = field(default_factory=dict)
    """uint8 RGB `[H, W, 3]`, of the images that are at hand."""
    films: Mapping[int, Video] = field(default_factory=dict)
    """The files of the films that are at hand, of which no frame has been read."""
    lossless: bool = True
    """Whether `pixels` and `films` are to the bit those that were saved."""

    def sound_sha256(self, index: int) -> str | None:
        """Returns the SHA-256 of the sound of film `index`; None where it had none."""
        images = [self.record["image"]] if "image" in self.record else self.record.get("images", [])
        return next((image.get("sound_sha256") for image in images if image["index"] == index), None)


def read_recorded_run(path: Path) -> RecordedRun:
    """Reads the record in an image, in a film, in a folder of frames, in a `record.json` or in a `job.json`.

    Raises:
        MediaError: there is no such file, it cannot be read, or holds no record.
        ConfigError: its content is no record as this version writes them.
    """
    if path.suffix.lower() == ".json":
        return _read_json_file(path)
    if path.name == FIRST_FRAME and is_frames_folder(path.parent):
        path = path.parent  # which is the film
    media_format = format_of(path)
    if isinstance(media_format, VideoFormat):
        _check_magic(path, *media_format.magic)
    record = read_record(path)
    if "left_out" in record:
        raise MediaError(
            f"{path}: has no room for its record, which was {record['left_out']}; give the run's record.json"
        )
    check_record(record, str(path))
    if "image" not in record:
        raise ConfigError(f"{path}: its record does not say which picture of the run it is; the record was changed")
    index = record["image"]["index"]
    pixels, films = _content({index: path})
    digests = {index: record["image"]["pixels_sha256"]}
    return RecordedRun(str(path), record, digests, pixels, films, is_lossless(path))


def _content(files: Mapping[int, Path]) -> tuple[dict[int, np.ndarray], dict[int, Video]]:
    """Returns the pixels of images, and the films, that files hold."""
    return (
        {index: read_image(str(path), "FILE").pixels for index, path in files.items() if is_still(path)},
        {index: Video.open(path) for index, path in files.items() if is_video(path)},
    )


def recorded_run(record: Any, label: str, files: Mapping[int, Path] | None = None) -> RecordedRun:
    """Builds the recorded run of a run's whole record.

    Args:
        record: data from a file or a store.
        label: how messages call it.
        files: the run's files that are at hand, by the index of their image. Those that lose something are left out.

    Raises:
        ConfigError: it is no record, or of a run that did not end.
    """
    check_record(record, label)
    if not record.get("images"):
        if "image" in record:
            index = record["image"]["index"]
            return RecordedRun(label, record, {index: record["image"]["pixels_sha256"]})
        raise ConfigError(f"{label}: the run made no picture: there is nothing to make again; start it anew")
    digests = {image["index"]: image["pixels_sha256"] for image in record["images"]}
    lossless = {
        index: path
        for index, path in (files or {}).items()
        if index in digests and is_lossless(path) and (path.is_file() or is_video(path))
    }
    return RecordedRun(label, record, digests, *_content(lossless))


def _read_json_file(path: Path) -> RecordedRun:
    content = _json_object(path)
    if "record" not in content:
        return recorded_run(content, str(path))
    version = content.get("version")
    if version != _JOB_VERSION:
        raise ConfigError(f"{path}: is of version {short_text(version)}; this diffuse reads {_JOB_VERSION}")
    return recorded_run(content["record"], str(path), _job_files(path, content.get("media")))


def _job_files(path: Path, media: Any) -> dict[int, Path]:
    """Returns the files that a job lists, by the index of their image. They lie beside it, and nowhere else."""
    entries = media if isinstance(media, list) else []
    files = {}
    for index, entry in enumerate(entries):
        name = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or re.search(r"[/\\:\0]", name) or name in (".", ".."):
            raise ConfigError(f"{path}: lists {short_text(name)}, which is not the name of a file beside it; refused")
        files[index] = path.parent / name
    return files


def _check_magic(path: Path, offset: int, magic: bytes) -> None:
    """Checks that a video is one: a playlist under that name would have ffmpeg open whatever it lists."""
    if not path.is_file():
        raise MediaError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            content = file.read(offset + len(magic))
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror or error}") from None
    if content[offset:] != magic:
        raise MediaError(f"{path}: is no {path.suffix[1:].upper()} file")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MediaError(f"{path}: is no file; give a record.json")
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise MediaError(f"{path}: is a folder; give one file in it") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_BYTES:
        raise MediaError(f"{path}: is longer than {MAX_BYTES >> 20} MiB, which no record is")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise MediaError(f"{path}: is not JSON; give a record.json or a job.json that diffuse wrote") from None
    if not isinstance(values, dict):
        raise MediaError(f"{path}: holds no record; give a record.json or a job.json that diffuse wrote")
    return values
