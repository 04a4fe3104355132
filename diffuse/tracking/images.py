"""Saved media among a run's artifacts, and images under the names by which MLflow's page finds them.

MLflow's log_image is not used: it draws a random name for each call, so that a delivery made again would double the
image, and it calls the store eight times. Here the name follows from the run and the step. A test compares both.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse.errors import MediaError
from diffuse.media.formats import STILL_SUFFIXES, is_video
from diffuse.media.load import content_sha256
from diffuse.media.video import Video

IMAGE_KEY = "image"  # of a run's results
SHEET_KEY = "sheet"  # of a sweep's contact sheets
_PLAYED = (".mp4", ".webm", ".gif")  # films that the page of an artifact plays
_PREVIEW_SIDE = 480  # pixels, of a film that it does not
_SIDES = {IMAGE_KEY: 256, SHEET_KEY: 1024}  # pixels, of the small image that the page's grid shows


def stage_media(path: Path, media: Mapping[str, Any], run_id: str, start_time: int, folder: Path) -> None:
    """Puts a saved file, as it was saved, into `folder`, which holds the artifacts of its run; and its image.

    Where the page does not play a film as it was saved, it finds a small WebM in `preview`.

    Args:
        path: a file, or a folder of frames.
        media: what the journal says of it: `sha256`, `step`, and its `key` among the images.

    Raises:
        ValueError: it has changed since, is gone, or is a film that cannot be decoded.
    """
    try:
        if content_sha256(path) != media["sha256"]:
            raise ValueError(f"{path} has changed since it was saved, and is left out of its run")
        key = media.get("key", IMAGE_KEY)
        if key == IMAGE_KEY:  # the file of a sheet goes with the report
            _link(path, folder / "media")
        stage_image(path, folder, run_id, start_time, media["step"], key)
        if is_video(path) and path.suffix.lower() not in _PLAYED:
            (folder / "preview").mkdir(exist_ok=True)
            (folder / "preview" / f"{path.stem}.webm").write_bytes(Video.open(path).preview(_PREVIEW_SIDE))
    except MediaError as error:
        raise ValueError(str(error)) from error


def _link(path: Path, folder: Path) -> None:
    """Puts a file, or a folder of frames with what is not hidden in it, into `folder` by links."""
    files = path.iterdir() if path.is_dir() else [path]
    for file in (each for each in files if each.is_file() and not each.name.startswith(".")):
        link = folder / file.relative_to(path.parent)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, link)


def stage_image(path: Path, folder: Path, run_id: str, start_time: int, step: int, key: str = IMAGE_KEY) -> None:
    """Puts the image at `path` into `folder`, whole and small; of a film the first frame. Sound alone is left out.

    Args:
        folder: holds the artifacts of the run, which are to be logged together.
        start_time: of the run, in milliseconds.
        step: the index of the image in its run.
    """
    is_film = is_video(path)
    if not is_film and path.suffix.lower() not in STILL_SUFFIXES:
        return
    from PIL import Image

    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {step}")
    images = folder / "images"
    images.mkdir(exist_ok=True)
    whole = images / f"{key}+step+{step}+timestamp+{start_time}+{name}.png"
    with Image.fromarray(Video.open(path).frames(1)[0]) if is_film else Image.open(path) as image:
        if path.suffix.lower() == ".png":
            os.symlink(path, whole)  # as it is, with the record in it
        else:
            image.convert("RGB").save(whole)
        small = image.convert("RGB")
    scale = _SIDES[key] / max(small.size)
    if scale < 1:
        small = small.resize([max(1, round(side * scale)) for side in small.size])
    if key == SHEET_KEY:  # the page centres it in a square, most of which may lie below the visible part
        square = Image.new("RGBA", (max(small.size),) * 2)
        square.paste(small)
        small = square
    small.save(whole.with_name(f"{whole.stem}+compressed.webp"))
