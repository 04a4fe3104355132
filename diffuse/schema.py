"""The request's fields, the groups of the configuration, and their enumerations.

A request field stands once, in `GenerationRequest`, with its type, default, help text and range. The configuration, its
checks, `diffuse --help`, `conf/config.yaml` and `diffuse/docs/fields.md` come from there. Adding one touches this file,
the pipelines that know it (`request_fields`) and a test; then `python tests/support/field_texts.py` writes those texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

MISSING: Any = "???"  # `omegaconf.MISSING`, which is that text: a value that the configuration must set
SEED_LIMIT = 2**63  # torch's generators take no larger seed


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Download(Enum):
    ask = "ask"
    yes = "yes"
    never = "never"


class Determinism(Enum):
    relaxed = "relaxed"
    strict = "strict"


class Compile(Enum):
    none = "none"
    regional = "regional"


class GuidanceMode(Enum):
    batched = "batched"
    sequential = "sequential"


class Cleanup(Enum):
    none = "none"
    phases = "phases"


class ReleaseTo(Enum):
    host = "host"
    disk = "disk"


class Resize(Enum):
    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class Suite(Enum):
    smoke = "smoke"


class LongPrompt(Enum):
    cut = "cut"
    chunk = "chunk"


class PromptSyntax(Enum):
    plain = "plain"
    weighted = "weighted"


class ImageFormat(Enum):
    png = "png"
    jpg = "jpg"
    webp = "webp"
    tiff = "tiff"


@dataclass
class ComponentConfig:
    """The source of one component that does not come from the model's own checkpoint; all null where it does."""

    source: str | None = None  # a whole checkpoint, or a folder, file or hub repository that is this component
    revision: str | None = None
    variant: str | None = None
    fetch_variant: str | None = None  # what is fetched where variant is null and nothing is here yet


@dataclass
class ComponentsConfig:
    """The components of a model that can come from elsewhere than its checkpoint."""

    unet: ComponentConfig = field(default_factory=ComponentConfig)
    vae: ComponentConfig = field(default_factory=ComponentConfig)
    text_encoder: ComponentConfig = field(default_factory=ComponentConfig)
    text_encoder_2: ComponentConfig = field(default_factory=ComponentConfig)
    tokenizer: ComponentConfig = field(default_factory=ComponentConfig)
    tokenizer_2: ComponentConfig = field(default_factory=ComponentConfig)


COMPONENTS = tuple(component.name for component in fields(ComponentsConfig))


@dataclass
class ModelConfig(ComponentsConfig):
    """`conf/model/*.yaml`: which pipeline, where its weights are, and what a null request field becomes."""

    _target_: str = MISSING  # a class inside diffuse.pipelines
    name: str = MISSING
    source: str | None = None  # a folder in the diffusers layout, a single file, or a hub repository
    revision: str | None = None
    variant: str | None = None  # the published file variant, such as fp16
    fetch_variant: str | None = None  # what is fetched where variant is null and nothing is here yet
    download: Download = Download.ask  # whether what is not here is fetched, for the refiner and components too
    half_dtype: Dtype = Dtype.bfloat16  # what a profile's "half" means for this model
    size_multiple: int = 8  # width and height are multiples of it
    request_defaults: dict[str, Any] = field(default_factory=dict)  # request field -> value
    min_vram_gib: dict[str, float] = field(default_factory=dict)  # memory profile -> free GiB it needs


@dataclass
class RefinerConfig(ComponentsConfig):
    """`conf/refiner/*.yaml`: a second model that makes the last steps, or none."""

    name: str = MISSING
    _target_: str | None = None  # a class inside diffuse.pipelines
    source: str | None = None  # a folder in the diffusers layout, a single file, or a hub repository
    revision: str | None = None
    variant: str | None = None
    fetch_variant: str | None = None  # what is fetched where variant is null and nothing is here yet
    request_defaults: dict[str, Any] = field(default_factory=dict)  # request field -> value


@dataclass
class MemoryProfileConfig:
    """`conf/memory_profile/*.yaml`: what may be resident where, and when."""

    name: str = MISSING
    on_device: list[str] = field(default_factory=list)  # components that run on the device; others run on the CPU
    half: bool = True  # half precision on an accelerator; a CPU computes in float32
    guidance: GuidanceMode = GuidanceMode.batched
    streamed: list[str] = field(default_factory=list)  # of these, components whose blocks pass over it one by one
    resident_blocks: int = 0  # blocks of a streamed component that stay on the device
    cleanup: Cleanup = Cleanup.none  # phases: a component leaves the device when its phase ends
    cleanup_every: int = 0  # steps between emptyings of the allocator's cache, 0 for never
    batch_size: int | None = None  # images denoised together; null: as many as batch_pixels have room for
    batch_pixels: int | None = None  # of all images that are denoised together
    tiled_decode: bool = False  # a picture larger than a tile is decoded in parts
    tiled_encode: bool = False  # and encoded
    vae_tile_size: int = 32  # side of a square tile, in latents
    vae_tile_overlap: int | None = None  # of independent tiles, blended; null: parts that share norms and see no seam
    max_side: int | None = None  # the largest width or height
    release_to: ReleaseTo = ReleaseTo.host  # disk: a component whose phase ends is dropped, and read again when used
    budget_gib: float | None = None  # of the device, which a run keeps within; auto chooses the other fields by it
    host_gib: float | None = None  # of tensors in main memory, likewise
    step_down: bool = True  # go on with less of it where memory runs out


@dataclass
class HardwareConfig:
    """`conf/hardware/*.yaml`: what there is."""

    name: str = MISSING
    device: Device = Device.auto
    dtype: Dtype = Dtype.auto
    deterministic: Determinism = Determinism.relaxed
    compile: Compile = Compile.none
    vram_gb: float | None = None  # plan for a card of this size instead of the one found
    threads: int | None = None  # CPU threads; null leaves torch's choice


@dataclass
class TrackingConfig:
    """`conf/tracking/*.yaml`: where the record goes. Null is what `config/tracking_settings.py` makes of it."""

    name: str = MISSING  # mlflow | none
    uri: str | None = None
    artifact_location: str | None = None
    experiment: str | None = None
    journal: str | None = None  # where runs wait until they are in the store
    run_name: str | None = None  # of the run; in a sweep it stands before the name of each
    tags: dict[str, Any] = field(default_factory=dict)  # the user's own, by name


@dataclass
class ObjectiveConfig:
    """The metric that a sweeper optimizes, and the image that quality is measured against."""

    metric: str | None = None  # a metric of the run
    reference: str | None = None  # the file of the picture that quality/psnr compares with


@dataclass
class OutputConfig:
    dir: str = MISSING
    name: str | None = None
    format: ImageFormat = ImageFormat.png
    quality: int = 95


@dataclass
class ReportConfig:
    """The report at the end of a sweep."""

    make: bool = True  # the page, the table and the plots
    sheets: bool = True  # contact sheets too


# Help texts that two fields share; `diffuse --help` gives them one entry.
_SECOND = "for SDXL's second text encoder; null is the first one's"
_SIZE = "of the picture, in pixels"
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
    keep_unmasked: bool = request_field(
        "true returns pixels outside the mask unchanged", default=False, config_default=False
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
INPUT_FIELDS = ("input_image", "mask_image", "strength", "resize", "keep_unmasked")  # those of starting from an image
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
    num_inference_steps: int | None
    timesteps: Sequence[int] | None
    sigmas: Sequence[float] | None
    guidance_scale: float | None
    guidance_rescale: float | None
    original_width: int | None
    original_height: int | None
    crop_left: int | None
    crop_top: int | None
    target_width: int | None
    target_height: int | None
    aesthetic_score: float | None
    negative_aesthetic_score: float | None
    denoising_end: float | None
