"""The pictures that a request starts from: the fields that go with them, checked, and the files, read. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.errors import ConfigError
from diffuse.media.images import InputImage, InputImageCache
from diffuse.schema import GenerationRequest, Resize

STRENGTH = 0.8  # where none is given: enough to change what is there, and to keep how it lies
STRENGTH_UNDER_A_MASK = 1.0  # there, nothing is to be kept
FIELDS = ("input_image", "mask_image", "strength", "resize", "keep_unmasked")


@dataclass(frozen=True)
class Inputs:
    """A picture, and where a part of it is to be painted anew, the mask of that part. Of one size."""

    picture: InputImage
    mask: InputImage | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the files were read, a line each."""
        return self.picture.notes + (self.mask.notes if self.mask else ())

    def size(self, multiple: int) -> tuple[int, int]:
        """Width and height in pixels, rounded down to `multiple`."""
        width, height = (max(side - side % multiple, multiple) for side in self.picture.size)
        return width, height

    def fitted(self, request: GenerationRequest) -> dict[str, np.ndarray]:
        """`picture`, uint8 `[H, W, 3]`, and where there is a mask `mask`, bool `[H, W]`: what is to be painted anew."""
        assert request.resize is not None
        size = request.width, request.height
        fitted = {"picture": self.picture.resize(*size, request.resize)}
        if self.mask is not None:
            fitted["mask"] = self.mask.resize(*size, request.resize) >= 128
        return fitted

    def as_record(self, request: GenerationRequest) -> dict[str, Any]:
        """By field: which file it was, the SHA-256 of its bytes, and its size in pixels. A picture that was in memory
        has no file, and the SHA-256 is of its pixels."""
        files = {"input_image": (request.input_image, self.picture), "mask_image": (request.mask_image, self.mask)}
        return {
            field: {
                "file": None if read.in_memory else str(Path(str(path)).expanduser().absolute()),
                "sha256": read.sha256,
                "width": read.size[0],
                "height": read.size[1],
            }
            for field, (path, read) in files.items()
            if read is not None
        }


def read(
    given: Mapping[str, Any],
    values: dict[str, Any],
    in_memory: Mapping[str, Image.Image | np.ndarray] | None,
    reader: InputImageCache,
) -> Inputs | None:
    """Reads the pictures of a request and fills the fields that go with them, of `values`, in place.

    `given` are the fields as the user set them, None where not; `values` those with the model's defaults. A picture of
    `in_memory` stands for the file that its field names; files are read by `reader`.

    Raises:
        ConfigError: a field is out of range, goes with one that is missing, or the mask is of another size.
        MediaError: a file is not there or no picture.
    """
    if not values["input_image"]:
        for name in FIELDS[1:]:
            if given[name] is not None and given[name] is not False:
                raise ConfigError(f"{name}={_shown(given[name])}: is of a picture to start from; add input_image=FILE")
        values |= dict.fromkeys(FIELDS[:-1]) | {"keep_unmasked": False}
        return None
    masked = bool(values["mask_image"])
    if values["keep_unmasked"] and not masked:
        raise ConfigError("keep_unmasked=true: keeps what is outside a mask; add mask_image=FILE")
    if values["strength"] is None:
        values["strength"] = STRENGTH_UNDER_A_MASK if masked else STRENGTH
    _check_strength(values["strength"], values["num_inference_steps"])
    values["resize"] = Resize(values["resize"] or Resize.stretch)
    values["keep_unmasked"] = bool(values["keep_unmasked"])
    sources = {**values, **(in_memory or {})}
    picture = reader.image(sources["input_image"])
    if not masked:
        return Inputs(picture)
    mask = reader.mask(sources["mask_image"])
    if mask.size != picture.size:
        raise ConfigError(
            f"mask_image={values['mask_image']}: is {_size(mask)} pixels and the input_image {_size(picture)}; "
            "give them the same size"
        )
    return Inputs(picture, mask)


def _check_strength(strength: Any, steps: int) -> None:
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise ConfigError(f"strength={strength}: should be a number above 0, up to 1, which forgets the input")
    if int(steps * strength) < 1:
        least = math.ceil(1 / strength)
        raise ConfigError(
            f"strength={strength}: leaves none of num_inference_steps={steps} to run; "
            f"raise it, or take at least {least} steps"
        )


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Resize) else str(value).lower() if isinstance(value, bool) else str(value)


def _size(picture: InputImage) -> str:
    return f"{picture.size[0]} x {picture.size[1]}"
