"""Images under the names by which MLflow's page finds them.

MLflow's log_image is not used: it draws a random name for each call, so that a delivery made again would double the
image, and it calls the store eight times. Here the name follows from the run and the step. A test compares both.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from diffuse.media.formats import STILL_SUFFIXES

IMAGE_KEY = "image"  # of a run's results
SHEET_KEY = "sheet"  # of a sweep's contact sheets
_SIDES = {IMAGE_KEY: 256, SHEET_KEY: 1024}  # pixels, of the small image that the page's grid shows


def stage_image(path: Path, folder: Path, run_id: str, start_time: int, step: int, key: str = IMAGE_KEY) -> None:
    """Puts the image at `path` into `folder`, whole and small. Other media are left out.

    Args:
        folder: holds the artifacts of the run, which are to be logged together.
        start_time: of the run, in milliseconds.
        step: the index of the image in its run.
    """
    if path.suffix.lower() not in STILL_SUFFIXES:
        return
    from PIL import Image

    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {step}")
    images = folder / "images"
    images.mkdir(exist_ok=True)
    whole = images / f"{key}+step+{step}+timestamp+{start_time}+{name}.png"
    with Image.open(path) as image:
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
