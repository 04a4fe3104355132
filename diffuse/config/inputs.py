"""The images that a request starts from: the fields that go with them, and the files. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from diffuse.errors import ConfigError
from diffuse.media.compression import compress_picture
from diffuse.media.images import InputImage, InputImageCache
from diffuse.paths import user_path
from diffuse.schema import INPUT_FIELDS, GenerationRequest, Resize

STRENGTH = 0.8  # where none is given: enough to change things, and to keep their arrangement
MASKED_STRENGTH = 1.0  # nothing under the mask is kept


@dataclass(frozen=True)
class Inputs:
    """An image, and for inpainting the mask of the part to paint anew. Both have one size."""

    picture: InputImage
    mask: InputImage | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages to the user on how the files were read, a line each."""
        return self.picture.notes + (self.mask.notes if self.mask else ())

    def size(self, multiple: int) -> tuple[int, int]:
        """Returns width and height in pixels, rounded down to `multiple`."""
        width, height = (max(side - side % multiple, multiple) for side in self.picture.size)
        return width, height

    def arrays(self, request: GenerationRequest) -> dict[str, np.ndarray]:
        """Returns the images at the request's size: `picture`, uint8 `[H, W, 3]`, and `mask`, bool `[H, W]`, if any.

        The mask is true where the picture is to be painted anew.
        """
        assert request.resize is not None
        size = request.width, request.height
        picture = self.picture
        if request.input_crf:
            picture = replace(picture, pixels=compress_picture(picture.pixels, request.input_crf), _resized={})
        arrays = {"picture": picture.resize(*size, request.resize)}
        if self.mask is not None:
            arrays["mask"] = self.mask.resize(*size, request.resize) >= 128
        return arrays

    def as_record(self, request: GenerationRequest) -> dict[str, Any]:
        """Returns by field the file, the SHA-256 of its bytes, and the size in pixels.

        An image that was in memory has no file, and the SHA-256 is that of its pixels.
        """
        files = {"input_image": (request.input_image, self.picture), "mask_image": (request.mask_image, self.mask)}
        return {
            field: {
                "file": None if read.in_memory else str(user_path(str(path), field).absolute()),
                "sha256": read.sha256,
                "width": read.size[0],
                "height": read.size[1],
            }
            for field, (path, read) in files.items()
            if read is not None
        }


def fill_input_fields(fields: dict[str, Any], *, has_strength: bool = True) -> None:
    """Fills the fields that go with an input image, in place; without one they are as if they were not set.

    Args:
        has_strength: the model changes a picture more or less; False where it keeps it.

    Raises:
        ConfigError: the name of a file is empty.
    """
    for name in ("input_image", "mask_image"):
        check_file_name(name, fields[name])
    if not fields["input_image"]:
        fields |= dict.fromkeys(INPUT_FIELDS[:-1]) | {"keep_unmasked": False}
        return
    if fields["strength"] is None and has_strength:
        fields["strength"] = MASKED_STRENGTH if fields["mask_image"] else STRENGTH
    fields["resize"] = fields["resize"] or Resize.stretch
    fields["keep_unmasked"] = bool(fields["keep_unmasked"])


def check_file_name(setting: str, path: Any) -> None:
    """Raises ConfigError for an empty name of a file, as a variable of the shell's that is not set gives it."""
    if path is not None and not str(path).strip():
        raise ConfigError(f"{setting} is empty: give a file, or leave it out")


def check_input_fields(fields: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks the combination of the fields that go with an input image; their ranges are checked before.

    Args:
        fields: the filled fields of the request.
        config: the fields as the user set them, None where not.

    Raises:
        ConfigError: a field goes with one that is not set, or no step is left.
    """
    if not fields["input_image"]:
        for name in INPUT_FIELDS[1:]:
            if config[name] is not None and config[name] is not False:
                raise ConfigError(f"{name}: is of a picture to start from; add input_image=FILE")
        return
    if fields["keep_unmasked"] and not fields["mask_image"]:
        raise ConfigError("keep_unmasked=true: keeps what is outside a mask; add mask_image=FILE")
    strength, steps = fields["strength"], fields["num_inference_steps"]
    if strength is not None and int(steps * strength) < 1:
        least = math.ceil(1 / strength)
        raise ConfigError(
            f"strength={strength}: leaves none of num_inference_steps={steps} to run; "
            f"raise it, or take at least {least} steps"
        )


def read_inputs(
    fields: Mapping[str, Any], in_memory: Mapping[str, Image.Image | np.ndarray] | None, reader: InputImageCache
) -> Inputs | None:
    """Reads the images that a request starts from; None where it starts from noise alone.

    Args:
        fields: the filled and checked fields of the request.
        in_memory: by field, images or arrays `[H, W]`, `[H, W, 3]` or `[H, W, 4]` that stand for the files that their
            fields name.
        reader: reads the files, and keeps them for other requests.

    Raises:
        ConfigError: the mask is of another size than the image.
        MediaError: a file is missing or holds no image.
    """
    if not fields["input_image"]:
        return None
    sources = {**fields, **(in_memory or {})}
    picture = reader.image(sources["input_image"])
    if not fields["mask_image"]:
        return Inputs(picture)
    mask = reader.mask(sources["mask_image"])
    if mask.size != picture.size:
        raise ConfigError(
            f"mask_image={fields['mask_image']}: is {_size(mask)} pixels and the input_image {_size(picture)}; "
            "give them the same size"
        )
    return Inputs(picture, mask)


def _size(picture: InputImage) -> str:
    return f"{picture.size[0]} x {picture.size[1]}"
