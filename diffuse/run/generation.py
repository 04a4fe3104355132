"""What a run gives back in Python: the pictures, how they came about, and their record."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffuse.media import files as media
from diffuse.media.pixels import pixels_sha256
from diffuse.record import record
from diffuse.schedulers.build import sampler_label
from diffuse.schema import ImageFormat

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = 4  # of pictures side by side in a notebook
_GAP = 4  # pixels between them


@dataclass(repr=False, eq=False)
class Generation:
    """The pictures of one run, in the order of their seeds. In a notebook it shows itself."""

    pixels: np.ndarray
    """uint8 RGB `[N, H, W, 3]`."""
    latents: Tensor
    """`[N, C, h, w]` on the CPU, float32: what was decoded to the pixels."""
    timings: Mapping[str, float]
    """Seconds: `load_s`, `encode_s`, `denoise_s`, `decode_s`, `total_s`."""
    step_seconds: list[float]
    """Seconds of each call of the denoiser, over all batches."""
    memory: Mapping[str, float]
    """GiB: `peak_gib` on the device, `rss_peak_gib` of the process."""
    warnings: list[str]
    """What the user should know, a line each; for instance that a prompt was cut off."""
    record: dict[str, Any]
    """All that is needed to make the pictures again, as plain JSON values; `images` has the digest of each."""
    paths: list[Path] = field(default_factory=list)
    """Where the run saved them; empty if it did not."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """How near they are to `objective.reference`, where there is one: `quality/psnr` in decibels."""

    @cached_property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images, RGB."""
        return [Image.fromarray(pixels) for pixels in self.pixels]

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers of the run by the names that they have in the tracking store."""
        timings = {f"time/{name}": seconds for name, seconds in self.timings.items()}
        return timings | {f"memory/{name}": gib for name, gib in self.memory.items()} | dict(self.quality)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The record of each picture alone: what goes into its file."""
        shared = {key: value for key, value in self.record.items() if key != "images"}
        return [{**shared, "image": image} for image in self.record["images"]]

    def save(
        self,
        folder: str | Path = ".",
        name: str | None = None,
        *,
        format: ImageFormat | str = ImageFormat.png,
        quality: int = 95,
    ) -> list[Path]:
        """Writes the pictures, each with its record inside, and returns where.

        `name`, without extension, is made of the prompt and the seed where it is None. An existing file is never
        overwritten: a number is appended.

        Raises:
            MediaError: the folder, the name, the format or the quality cannot be used.
            RunError: a file could not be written, for instance because the disk is full.
        """
        return [self.save_one(index, Path(folder), name, format, quality) for index in range(len(self.pixels))]

    def save_one(
        self, index: int, folder: Path, name: str | None, format: ImageFormat | str, quality: int = 95
    ) -> Path:
        """Writes picture `index`; see `save`."""
        one = self.records[index]
        return media.save_image(
            self.pixels[index],
            folder,
            media.file_stem(one["request"]["prompt"], one["image"]["seed"], name),
            format=format,
            quality=quality,
            record=one,
            parameters=media.parameters_text(one, sampler_label(one["config"]["scheduler"])),
        )

    def __repr__(self) -> str:
        count, height, width, _ = self.pixels.shape
        seed = self.record["request"]["seed"]
        seeds = f"seed {seed}" if count == 1 else f"seeds {seed} to {seed + count - 1}"
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        return f"<Generation: {pictures}, {width} x {height}, {seeds}, {self.timings['total_s']:.1f} s>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the pictures, side by side if there are several."""
        out = io.BytesIO()
        Image.fromarray(side_by_side(self.pixels)).save(out, "PNG")
        return out.getvalue()


def recorded(about: Mapping[str, Any], pixels: np.ndarray) -> dict[str, Any]:
    """The run's record `about` with the part of each picture, `[N, H, W, 3]`, which now exists."""
    digests = [pixels_sha256(image) for image in pixels]
    images = [record.of_image(about, index, digest)["image"] for index, digest in enumerate(digests)]
    return record.of_images(about, images)


def side_by_side(pixels: np.ndarray) -> np.ndarray:
    """Pictures `[N, H, W, 3]` as one, in rows of up to four, white between them."""
    count, height, width, _ = pixels.shape
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    size = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP
    sheet = np.full((*size, 3), 255, np.uint8)
    for index, picture in enumerate(pixels):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet
