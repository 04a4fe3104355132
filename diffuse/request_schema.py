"""The fields of a request.

A field stands once, in `GenerationRequest`, with its type, default, help text and range. The configuration, its checks,
`diffuse --help`, `conf/config.yaml` and `diffuse/docs/fields.md` come from there. Adding one touches this file, the
pipelines that know it (`request_fields`) and a test; then `python tests/support/field_texts.py` writes those texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

SEED_LIMIT = 2**63  # torch's generators take no larger seed


class Resize(Enum):
    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class LongPrompt(Enum):
    cut = "cut"
    chunk = "chunk"


class PromptSyntax(Enum):
    plain = "plain"
    weighted = "weighted"


class SizeFit(Enum):
    refuse = "refuse"
    shrink = "shrink"


# Help texts that two fields share; `diffuse --help` gives them one entry.
_SECOND = "for SDXL's second text encoder; null is the first one's"
_SIZE = "of the picture, in pixels"
_SOUND = "the same of a film's sound; null is the picture's"
_BEFORE = "SDXL: pixels of the picture to imagine, before scaling"
_CROP = "SDXL: pixels that were cropped off that picture"
_AFTER = "SDXL: pixels of that picture after scaling"


def request_field(help: str, *, default: Any = dataclasses.MISSING, **facts: Any) -> Any:
    """Returns a dataclass field with its help text, and other attributes of `RequestField`, as metadata."""
    return field(default=default, metadata={"help": help, **facts})


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A request with nothing left open. A pipeline lists those fields that not all families know."""

    prompt: str = request_field("what the picture shows; taken literally", is_prompt=True)
    # None is no negative prompt at all, which to SDXL is not the same as an empty one.
    negative_prompt: str | None = request_field("what the picture does not show", is_prompt=True)
    prompt_2: str | None = request_field(_SECOND, default=None, is_prompt=True)
    negative_prompt_2: str | None = request_field(_SECOND, default=None, is_prompt=True)
    long_prompt: LongPrompt = request_field(
        "whether a prompt beyond the encoder's tokens (77 in most) is cut, or read in chunks",
        default=LongPrompt.cut,
    )
    prompt_syntax: PromptSyntax = request_field(
        "weighted: (word:1.3) weighs 1.3, (word) 1.1, [word] 1 / 1.1, in all four prompts", default=PromptSyntax.plain
    )
    clip_skip: int | None = request_field(
        "last layers of the text encoders to leave out, for the prompt and not the negative one",
        default=None,
        least=0,
        since="0.2",
    )
    seed: int = request_field("image i uses seed + i; drawn where not given", least=0, most=SEED_LIMIT - 1)
    num_images: int = request_field("how many images a run makes", least=1, config_default=1)
    width: int = request_field(_SIZE, least=1)
    height: int = request_field(_SIZE, least=1)
    num_frames: int | None = request_field(
        "of the film: a multiple of 8, and one more", default=None, least=1, since="0.2"
    )
    fit: SizeFit = request_field(
        "whether what is larger than the memory profile is for is refused, or made smaller",
        default=SizeFit.refuse,
        since="0.2",
    )
    fps: float | None = request_field(
        "frames of the film a second, such as 24 or 29.97", default=None, above=0, most=1000, since="0.2"
    )
    num_inference_steps: int = request_field("more are slower and finer", least=1)
    timesteps: tuple[int, ...] | None = request_field(
        "those to visit, such as [999,749,499,249], instead of the scheduler's own choice", default=None
    )
    sigmas: tuple[float, ...] | None = request_field(
        "noise levels to visit, such as [14.6,3.9,1.4,0.4], by scheduler=euler and its kin",
        default=None,
        since="0.2",
    )
    guidance_scale: float = request_field("how closely to follow the prompt; 0 and 1 switch guidance off", least=0)
    guidance_rescale: float = request_field(
        "0-1: back towards the contrast of a picture without guidance", default=0.0, least=0, most=1
    )
    audio_guidance_scale: float | None = request_field(_SOUND, default=None, least=0, since="0.2")
    audio_guidance_rescale: float | None = request_field(_SOUND, default=None, least=0, most=1, since="0.2")
    modality_scale: float | None = request_field(
        "of films: how closely picture and sound follow one another; 1 switches it off",
        default=None,
        least=1,
        since="0.2",
    )
    audio_modality_scale: float | None = request_field(_SOUND, default=None, least=1, since="0.2")
    stg_scale: float | None = request_field(
        "of films: how far to go from a prediction with perturbed attention; 0: not at all",
        default=None,
        least=0,
        since="0.2",
    )
    audio_stg_scale: float | None = request_field(_SOUND, default=None, least=0, since="0.2")
    stg_blocks: tuple[int, ...] | None = request_field(
        "the transformer's blocks whose attention is perturbed, such as [28]", default=None, since="0.2"
    )
    original_width: int | None = request_field(_BEFORE, default=None, least=1)
    original_height: int | None = request_field(_BEFORE, default=None, least=1)
    crop_left: int | None = request_field(_CROP, default=None, least=0)
    crop_top: int | None = request_field(_CROP, default=None, least=0)
    target_width: int | None = request_field(_AFTER, default=None, least=1)
    target_height: int | None = request_field(_AFTER, default=None, least=1)
    aesthetic_score: float | None = request_field(
        "0-10: how pleasing SDXL's refiner is to imagine the picture", default=None, least=0, most=10
    )
    negative_aesthetic_score: float | None = request_field(
        "0-10: how pleasing the picture is that guidance leads away from", default=None, least=0, most=10
    )
    denoising_end: float | None = request_field(
        "0-1: the share of the denoising after which a refiner takes over", default=None, above=0, below=1
    )
    input_image: str | None = request_field(
        "a picture to start from; width and height are its own unless given", default=None, is_file=True
    )
    mask_image: str | None = request_field(
        "of the same size: white is painted anew, black is kept", default=None, is_file=True
    )
    strength: float | None = request_field(
        "above 0, up to 1: how far the picture may change; 0.8, or 1 with a mask", default=None, above=0, most=1
    )
    resize: Resize | None = request_field(
        "how a picture of another size is made to fit; stretch where not given", default=None
    )
    input_crf: int | None = request_field(
        "of films: how strongly given pictures are compressed first, as by H.264; 0: not at all",
        default=None,
        least=0,
        most=51,
        since="0.2",
    )
    keep_unmasked: bool = request_field(
        "true returns pixels outside the mask unchanged", default=False, config_default=False
    )
    last_image: str | None = request_field(
        "of films: a picture that it ends with", default=None, is_file=True, since="0.2"
    )
    input_video: str | None = request_field(
        "of films: a clip to go on from; width, height and fps are its own unless given",
        default=None,
        is_file=True,
        since="0.2",
    )
    num_conditioning_frames: int | None = request_field(
        "how many last frames of input_video: a multiple of 8, and one more; 17 if not set",
        default=None,
        least=1,
        since="0.2",
    )
    frame_index: int | None = request_field(
        "the frame of the film that input_image is; 0 where not given, -1 is the last", default=None, since="0.2"
    )
    conditioning_strength: float | None = request_field(
        "above 0, up to 1: how far a film keeps what it is given; 1 where not given",
        default=None,
        above=0,
        most=1,
        since="0.2",
    )
    last_image_strength: float | None = request_field(
        "the same of last_image alone", default=None, above=0, most=1, since="0.2"
    )

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return [self.seed + i for i in range(self.num_images)]

    @property
    def skipped_steps(self) -> int:
        """The number of steps at the noisy end that a run with an input image leaves out."""
        steps = self.num_inference_steps
        return 0 if self.strength is None else steps - min(int(steps * self.strength), steps)


@dataclass(frozen=True)
class RequestField:
    """Everything that is known of one request field."""

    name: str
    type: Any  # int, float, bool, str, an enumeration, or tuple for a list of numbers
    optional: bool  # whether a request may hold None
    default: Any  # where neither the user nor the model says otherwise; `dataclasses.MISSING`: one of them must
    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None  # as `least`, but excluded itself
    below: float | None = None
    is_prompt: bool = False  # a text that is taken literally
    is_file: bool = False
    since: str | None = None  # the version that brought it, if not the first: see `LATER_FIELDS`
    element: Any = None  # the type of a list's entries
    config_default: Any = None  # in the configuration, where None leaves the choice to the model

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of an enumeration."""
        return tuple(self.type.__members__) if issubclass(self.type, Enum) else ()

    @property
    def config_type(self) -> Any:
        """The type in the configuration."""
        value = list[self.element] if self.type is tuple else self.type  # type: ignore[name-defined]
        return value | None if self.config_default is None else value


def _request_fields() -> dict[str, RequestField]:
    hints = get_type_hints(GenerationRequest)
    found = {}
    for each in fields(GenerationRequest):
        hint = hints[each.name]
        kinds = [kind for kind in get_args(hint) if kind is not type(None)] if type(None) in get_args(hint) else [hint]
        kind, element = get_origin(kinds[0]) or kinds[0], next(iter(get_args(kinds[0])), None)
        optional = kinds[0] is not hint
        found[each.name] = RequestField(each.name, kind, optional, each.default, element=element, **each.metadata)
    return found


REQUEST_FIELDS = _request_fields()
PROMPT_FIELDS = tuple(name for name, each in REQUEST_FIELDS.items() if each.is_prompt)
# Those of starting from an image.
INPUT_FIELDS = ("input_image", "mask_image", "strength", "resize", "input_crf", "keep_unmasked")
# Those of further frames that a film is given.
FILM_INPUT_FIELDS = (
    "last_image",
    "input_video",
    "num_conditioning_frames",
    "frame_index",
    "conditioning_strength",
    "last_image_strength",
)
FILE_FIELDS = tuple(name for name, each in REQUEST_FIELDS.items() if each.is_file)
# By name, defaults of fields that came later. A sweep's identity leaves such a field out while it has its default.
LATER_FIELDS = {name: each.config_default for name, each in REQUEST_FIELDS.items() if each.since is not None}


class RequestArguments(TypedDict, total=False):
    """Request fields as arguments of Python functions, written out for type checkers; see `diffuse.api`.

    A test compares them with `GenerationRequest`.
    """

    negative_prompt: str | None
    prompt_2: str | None
    negative_prompt_2: str | None
    long_prompt: str | None
    prompt_syntax: str | None
    clip_skip: int | None
    seed: int | None
    num_images: int | None
    width: int | None
    height: int | None
    num_frames: int | None
    fit: str | None
    fps: float | None
    num_inference_steps: int | None
    timesteps: Sequence[int] | None
    sigmas: Sequence[float] | None
    guidance_scale: float | None
    guidance_rescale: float | None
    audio_guidance_scale: float | None
    audio_guidance_rescale: float | None
    modality_scale: float | None
    audio_modality_scale: float | None
    stg_scale: float | None
    audio_stg_scale: float | None
    stg_blocks: Sequence[int] | None
    original_width: int | None
    original_height: int | None
    crop_left: int | None
    crop_top: int | None
    target_width: int | None
    target_height: int | None
    aesthetic_score: float | None
    negative_aesthetic_score: float | None
    denoising_end: float | None
    input_crf: int | None
    num_conditioning_frames: int | None
    frame_index: int | None
    conditioning_strength: float | None
    last_image_strength: float | None
