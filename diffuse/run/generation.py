"""The result of a run in Python: frames, sound, how they were made, and their record."""

from __future__ import annotations

import base64
import io
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffuse.errors import MediaError
from diffuse.media.files import file_stem
from diffuse.media.formats import chosen_format
from diffuse.media.parameters import parameters_text
from diffuse.media.pixels import pixels_sha256
from diffuse.media.save import save_media, sound_notes
from diffuse.media.sound import sound_sha256
from diffuse.paths import user_path
from diffuse.record.record import image_record, record_with_images
from diffuse.sampling.results import PipelineOutput
from diffuse.schedulers.build import sampler_label
from diffuse.schema import OutputFormat

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_COLUMNS = 4  # of images side by side in a notebook
_GAP = 4  # pixels between them


@dataclass(repr=False, eq=False)
class Generation:
    """The results of one run, in the order of their seeds. In a notebook it shows itself."""

    frames: np.ndarray
    """uint8 RGB `[N, F, H, W, 3]`; an image is one frame."""
    latents: Mapping[str, Tensor]
    """By name, `[N, ...]` on the CPU in float32: what was decoded. Those of images are `image`, `[N, C, h, w]`."""
    timings: Mapping[str, float]
    """Seconds: `load_s`, `encode_s`, `denoise_s`, `decode_s`, `total_s`."""
    step_seconds: list[float]
    """Seconds of each call of the denoiser, over all batches."""
    memory: Mapping[str, float]
    """GiB: `peak_gib` on the device, `rss_peak_gib` of the process."""
    warnings: list[str]
    """A line each, for instance that a prompt was cut."""
    record: dict[str, Any]
    """All that is needed to make the results again, as plain JSON values; `images` has the digest of each."""
    paths: list[Path] = field(default_factory=list)
    """The files that the run saved; empty if it saved none."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """How near the results are to `objective.reference`, where there is one: `quality/psnr` in decibels."""
    fps: float | None = None
    """Frames a second; None for images."""
    sound: np.ndarray | None = None
    """float32 `[N, C, S]` from -1 to 1; None where there is no sound."""
    sample_rate: int | None = None
    """Samples of sound a second."""
    sampler_settings: Mapping[str, str] = field(default_factory=dict)
    """What image viewers are told of the sampler, by the names that they know."""

    @property
    def count(self) -> str:
        """The number of results in words, such as `2 films`."""
        kind, count = "picture" if self.fps is None else "film", len(self.frames)
        return f"1 {kind}" if count == 1 else f"{count} {kind}s"

    @cached_property
    def images(self) -> list[Image.Image]:
        """The first frame of each result as a PIL image, RGB."""
        return [Image.fromarray(frames[0]) for frames in self.frames]

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers of the run by the names that they have in the tracking store."""
        timings = {f"time/{name}": seconds for name, seconds in self.timings.items()}
        predicted = self.record.get("memory", {}).get("predicted", {})
        memory = {f"memory/{name}": gib for name, gib in self.memory.items()}
        return (
            timings | memory | {f"memory/predicted_{name}": gib for name, gib in predicted.items()} | dict(self.quality)
        )

    @property
    def records(self) -> list[dict[str, Any]]:
        """The record of each result alone, as its file holds it."""
        shared = {key: value for key, value in self.record.items() if key != "images"}
        return [{**shared, "image": image} for image in self.record["images"]]

    def save(
        self,
        folder: str | Path = ".",
        name: str | None = None,
        *,
        format: OutputFormat | str | None = None,
        quality: int = 95,
    ) -> list[Path]:
        """Writes the results, each with its record inside, and returns the paths.

        An existing file is never overwritten: a number is appended to the name.

        Args:
            name: without extension; made of the prompt and the seed where it is None.
            format: `png` for images and `mp4` for films where it is None; `frames` makes a folder of PNGs.
            quality: from 1 to 100, of formats that lose something.

        Raises:
            MediaError: the folder, the name, the format or the quality cannot be used.
            RunError: a file could not be written, for instance because the disk is full.
        """
        place = user_path(folder)
        chosen = chosen_format(format, is_film=self.fps is not None)
        for note in sound_notes(chosen, has_sound=self.sound is not None):
            log.warning("%s", note)
        return [self.save_one(index, place, name, format, quality) for index in range(len(self.frames))]

    def save_one(
        self, index: int, folder: Path, name: str | None, format: OutputFormat | str | None, quality: int = 95
    ) -> Path:
        """Writes result `index`, and returns its path; see `save`."""
        result = self.records[index]
        return save_media(
            self.frames[index],
            folder,
            file_stem(result["request"]["prompt"], result["image"]["seed"], name),
            format=format,
            quality=quality,
            record=result,
            fps=self.fps,
            sound=None if self.sound is None else self.sound[index],
            sample_rate=self.sample_rate,
            parameters=parameters_text(result, sampler_label(result["config"]["scheduler"]), self.sampler_settings),
        )

    def __repr__(self) -> str:
        count, length, height, width, _ = self.frames.shape
        seed = self.record["request"]["seed"]
        seeds = f"seed {seed}" if count == 1 else f"seeds {seed} to {seed + count - 1}"
        size = f"{width} x {height}"
        if self.fps is not None:
            size += f", {length} frames at {self.fps:g} a second{'' if self.sound is None else ', with sound'}"
        return f"<Generation: {self.count}, {size}, {seeds}, {self.timings['total_s']:.1f} s>"

    def _repr_html_(self) -> str | None:
        """Returns films as a notebook plays them; None for images, and where there is no ffmpeg."""
        if self.fps is None:
            return None
        with suppress(MediaError), tempfile.TemporaryDirectory(prefix="diffuse-") as folder:
            return "\n".join(_player(path) for path in self.save(folder, "film"))
        return None

    def _repr_png_(self) -> bytes:
        """Returns the images as a notebook shows them, side by side if there are several; of films the first frames."""
        out = io.BytesIO()
        Image.fromarray(side_by_side(self.frames[:, 0])).save(out, "PNG")
        return out.getvalue()


def result_record(
    run_record: Mapping[str, Any], output: PipelineOutput, memory: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the record of a run with its timings, its batch, and the digest of each result.

    Args:
        memory: the predicted and the measured peaks, where a budget was given.
    """
    finished: dict[str, Any] = {**run_record, "timings": dict(output.timings)}
    if output.step_downs:
        finished["step_downs"] = [dict(event) for event in output.step_downs]
    if output.quantized:
        finished["quantized"] = dict(output.quantized)
    if memory is not None:
        finished["memory"] = dict(memory)
    if len(output.batch_seeds) > len(output.frames):
        finished["batch"] = {"seeds": list(output.batch_seeds), "first": output.batch_index}
    images = [
        image_record(finished, index, pixels_sha256(frames), _film_record(output, index))["image"]
        for index, frames in enumerate(output.frames)
    ]
    return record_with_images(finished, images)


def _film_record(output: PipelineOutput, index: int) -> dict[str, Any]:
    """Returns what the record of a film says beside that of an image."""
    film: dict[str, Any] = {} if output.fps is None else {"fps": output.fps}
    if output.sound is not None:
        film |= {"sample_rate": output.sample_rate}
        film |= {"sound_sha256": sound_sha256(output.sound[index], output.sample_rate)}
    return film


def _player(path: Path) -> str:
    """Returns the HTML of a film in an MP4, which it holds."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls loop src="data:video/mp4;base64,{content}"></video>'


def side_by_side(images: np.ndarray) -> np.ndarray:
    """Lays images `[N, H, W, 3]` out as one, in rows of up to four, white between them."""
    count, height, width, _ = images.shape
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    size = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP
    sheet = np.full((*size, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet
