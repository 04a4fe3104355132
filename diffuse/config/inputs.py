"""The images and the clip that a request starts from: the fields that go with them, and the files. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from diffuse.errors import ConfigError
from diffuse.media.clips import InputClip, read_clip
from diffuse.media.compression import compress_picture
from diffuse.media.images import InputImage, InputImageCache
from diffuse.paths import user_path
from diffuse.schema import FILE_FIELDS, FILM_INPUT_FIELDS, INPUT_FIELDS, GenerationRequest, Resize

STRENGTH = 0.8  # where none is given: enough to change things, and to keep their arrangement
MASKED_STRENGTH = 1.0  # nothing under the mask is kept
CLIP_FRAMES = 17  # of a clip, where no number is given: enough to go on with its motion
_STEP = 8  # films have a multiple of these frames, and one more
_USUAL_RATE = 24.0
_SAME_PROPORTIONS = 0.02
_BEGINNINGS = ("input_image", "last_image", "input_video")  # one of them is what a request starts from
_PICTURE = ("input_image",)
_PICTURES = ("input_image", "last_image")
# What each field that goes with them needs one of.
_NEEDED = {
    "mask_image": _PICTURE,
    "strength": _PICTURE,
    "keep_unmasked": _PICTURE,
    "frame_index": _PICTURE,
    "input_crf": _PICTURES,
    "resize": _BEGINNINGS,
    "conditioning_strength": _BEGINNINGS,
    "last_image_strength": ("last_image",),
    "num_conditioning_frames": ("input_video",),
}
_WHOSE = {
    _PICTURE: "a picture to start from",
    _PICTURES: "pictures to start from",
    _BEGINNINGS: "what to start from",
    ("last_image",): "a last picture",
    ("input_video",): "a clip to go on from",
}


@dataclass(frozen=True)
class Inputs:
    """An image, and for inpainting the mask of the part to paint anew, of one size. A film may also go on from a clip,
    and end with a last image."""

    picture: InputImage | None = None
    mask: InputImage | None = None
    last: InputImage | None = None
    clip: InputClip | None = None
    clip_notes: tuple[str, ...] = ()

    @property
    def images(self) -> dict[str, InputImage]:
        """The images by their fields."""
        images = {"input_image": self.picture, "mask_image": self.mask, "last_image": self.last}
        return {name: image for name, image in images.items() if image is not None}

    @property
    def files(self) -> dict[str, InputImage | InputClip]:
        """The images and the clip by their fields."""
        return {**self.images, **({} if self.clip is None else {"input_video": self.clip})}

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages to the user on how the files were read, a line each."""
        return tuple(note for image in self.images.values() for note in image.notes) + self.clip_notes

    def size(self, multiple: int) -> tuple[int, int]:
        """Returns width and height in pixels, rounded down to `multiple`, of what the request begins with."""
        first = next(each for each in (self.picture, self.clip, self.last) if each is not None)
        width, height = (max(side - side % multiple, multiple) for side in first.size)
        return width, height

    def arrays(self, request: GenerationRequest) -> dict[str, np.ndarray]:
        """Returns the images at the request's size, as arguments of a pipeline.

        They are `image`, uint8 `[H, W, 3]`, or `[F, H, W, 3]` of a clip; `mask`, bool `[H, W]`, true where the image is
        to be painted anew; and `last_image`, uint8 `[H, W, 3]`. Those that there are not are left out.
        """
        assert request.resize is not None
        size = request.width, request.height
        arrays = {}
        for name, picture in (("image", self.picture), ("last_image", self.last)):
            if picture is None:
                continue
            if request.input_crf:
                picture = replace(picture, pixels=compress_picture(picture.pixels, request.input_crf), _resized={})
            arrays[name] = picture.resize(*size, request.resize)
        if self.mask is not None:
            arrays["mask"] = self.mask.resize(*size, request.resize) >= 128
        if self.clip is not None:
            assert request.num_conditioning_frames is not None and request.fps is not None
            arrays["image"] = self.clip.last_frames(request.num_conditioning_frames, request.fps, *size, request.resize)
        return arrays

    def as_record(self, request: GenerationRequest) -> dict[str, Any]:
        """Returns by field the file, the SHA-256 of its bytes, and the size in pixels; of a clip also its rate.

        What was in memory has no file, and the SHA-256 is that of its pixels.
        """
        record = {}
        for field, read in self.files.items():
            path = None if read.in_memory else str(user_path(str(getattr(request, field)), field).absolute())
            rate = {"fps": read.fps} if isinstance(read, InputClip) else {}
            record[field] = {
                "file": path, "sha256": read.sha256, "width": read.size[0], "height": read.size[1], **rate
            }  # fmt: skip
        return record


def fill_input_fields(fields: dict[str, Any], *, has_strength: bool = True) -> None:
    """Fills the fields that go with an input image, in place; without one they are as if they were not set.

    Args:
        has_strength: the model changes a picture more or less; False where it keeps it.

    Raises:
        ConfigError: the name of a file is empty.
    """
    for name in FILE_FIELDS:
        check_file_name(name, fields[name])
    if not any(fields[name] for name in _BEGINNINGS):
        fields |= dict.fromkeys((*INPUT_FIELDS[:-1], *FILM_INPUT_FIELDS)) | {"keep_unmasked": False}
        return
    if fields["strength"] is None and has_strength and fields["input_image"]:
        fields["strength"] = MASKED_STRENGTH if fields["mask_image"] else STRENGTH
    if not (fields["input_image"] or fields["last_image"]):
        fields["input_crf"] = None  # a clip's frames have been through such compression
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
    for name, needed in _NEEDED.items():
        if config[name] is not None and config[name] is not False and not any(fields[each] for each in needed):
            others = " or ".join(f"{each}=FILE" for each in needed)
            raise ConfigError(f"{name}: is of {_WHOSE[needed]}; add {others}")
    if fields["input_image"] and fields["input_video"]:
        raise ConfigError("input_image and input_video both begin the film: leave one of them out")
    if not fields["input_image"]:
        return
    if fields["keep_unmasked"] and not fields["mask_image"]:
        raise ConfigError("keep_unmasked=true: keeps what is outside a mask; add mask_image=FILE")
    strength, steps = fields["strength"], fields["num_inference_steps"]
    has_strength = config["model"].request_defaults.get("strength", STRENGTH) is not None
    if has_strength and strength is not None and int(steps * strength) < 1:
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
    if not any(fields[name] for name in _BEGINNINGS):
        return None
    sources = {**fields, **(in_memory or {})}
    picture = reader.image(sources["input_image"]) if fields["input_image"] else None
    last = reader.image(sources["last_image"], "last_image") if fields["last_image"] else None
    clip = reader.get(read_clip, sources["input_video"], "input_video") if fields["input_video"] else None
    mask = None
    if fields["mask_image"]:
        mask = reader.mask(sources["mask_image"])
        if picture is not None and mask.size != picture.size:
            raise ConfigError(
                f"mask_image={fields['mask_image']}: is {_size(mask)} pixels and the input_image {_size(picture)}; "
                "give them the same size"
            )
    return Inputs(picture, mask, last, clip)


def check_last_image(inputs: Inputs, fields: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks that a last image has the proportions of what the film begins with, unless `resize` says what to do.

    Raises:
        ConfigError: it has not.
    """
    first, name = (inputs.picture, "input_image") if inputs.clip is None else (inputs.clip, "input_video")
    last = inputs.last
    if first is None or last is None or config["resize"] is not None:
        return
    across, down = (last.size[axis] / first.size[axis] for axis in (0, 1))
    if abs(across / down - 1) > _SAME_PROPORTIONS:
        raise ConfigError(
            f"last_image={fields['last_image']}: is {_size(last)} pixels and the {name} {_size(first)}; give them the "
            "same proportions, or say with resize=crop, pad or stretch what is to be done"
        )


def read_clip_frames(
    inputs: Inputs, fields: dict[str, Any], config: Mapping[str, Any], size: tuple[int, int]
) -> Inputs:
    """Reads the frames that a film goes on from, and fills the fields that the clip says, in place.

    Args:
        size: width and height of the film in pixels.

    Returns:
        The inputs with a note where the clip is not as it was asked for.

    Raises:
        ConfigError: it has too few frames, or the film has no more than are taken.
        MediaError: it cannot be read to its end.
    """
    clip, notes = inputs.clip, []
    if clip is None:
        return inputs
    if config["fps"] is None and clip.fps is not None and fields["fps"] is not None:
        fields["fps"] = clip.fps
    fps = fields["fps"] or clip.fps or _USUAL_RATE
    asked, whole_film = fields["num_conditioning_frames"], fields["num_frames"]
    if asked is not None and whole_film is not None and asked >= whole_film:  # before frames in any number are read
        raise ConfigError(
            f"num_conditioning_frames={asked}: leaves nothing to make of num_frames={whole_film}, which counts them "
            f"too; make num_frames {(asked - 1) // _STEP * _STEP + 1 + _STEP} at least"
        )
    frames = len(clip.last_frames(asked or CLIP_FRAMES, fps, *size, fields["resize"]))
    whole = (frames - 1) // _STEP * _STEP + 1
    if asked is None:
        fields["num_conditioning_frames"] = asked = whole
        if whole < CLIP_FRAMES:
            last = "frame is" if whole == 1 else f"{whole} frames are"
            notes.append(f"{clip.label}: is short; the last {last} taken")
        clip.last_frames(whole, fps, *size, fields["resize"])
    if frames < asked:
        raise ConfigError(
            f"num_conditioning_frames={asked}: {clip.label} has {frames} at {fps:g} frames a second; try {whole}"
        )
    if clip.differs_from(fps):
        notes.append(f"{clip.label}: has {clip.fps:g} frames a second, and is read at fps={fps:g}")
    return replace(inputs, clip_notes=tuple(notes))


def _size(picture: InputImage | InputClip) -> str:
    return f"{picture.size[0]} x {picture.size[1]}"
