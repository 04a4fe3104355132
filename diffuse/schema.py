"""The groups of the configuration, their enumerations, and the request's fields.

`diffuse/request_schema.py` defines the last of these; other modules import them from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from diffuse.request_schema import (
    FILE_FIELDS,
    FILM_INPUT_FIELDS,
    INPUT_FIELDS,
    LATER_FIELDS,
    PROMPT_FIELDS,
    REQUEST_FIELDS,
    SEED_LIMIT,
    GenerationRequest,
    LongPrompt,
    PromptSyntax,
    RequestArguments,
    RequestField,
    Resize,
    SizeFit,
    request_field,
)

__all__ = [  # those of the request
    "FILE_FIELDS",
    "FILM_INPUT_FIELDS",
    "INPUT_FIELDS",
    "LATER_FIELDS",
    "PROMPT_FIELDS",
    "REQUEST_FIELDS",
    "SEED_LIMIT",
    "GenerationRequest",
    "LongPrompt",
    "PromptSyntax",
    "RequestArguments",
    "RequestField",
    "Resize",
    "SizeFit",
    "request_field",
]

MISSING: Any = "???"  # `omegaconf.MISSING`, which is that text: a value that the configuration must set


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


class Storage(Enum):
    full = "full"
    fp8 = "fp8"
    int8 = "int8"
    nf4 = "nf4"


class Suite(Enum):
    smoke = "smoke"


class OutputFormat(Enum):
    png = "png"
    jpg = "jpg"
    webp = "webp"  # animated for a film
    tiff = "tiff"
    mp4 = "mp4"
    webm = "webm"
    gif = "gif"
    avif = "avif"
    frames = "frames"  # a folder of PNGs
    wav = "wav"


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
    transformer: ComponentConfig = field(default_factory=ComponentConfig)
    connectors: ComponentConfig = field(default_factory=ComponentConfig)
    audio_vae: ComponentConfig = field(default_factory=ComponentConfig)
    vocoder: ComponentConfig = field(default_factory=ComponentConfig)
    latent_upsampler: ComponentConfig = field(default_factory=ComponentConfig)


COMPONENTS = tuple(component.name for component in fields(ComponentsConfig))
# Those that came later. A sweep's identity leaves such a one out while it is the model's own.
LATER_COMPONENTS = ("transformer", "connectors", "audio_vae", "vocoder", "latent_upsampler")


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


LEFT_TO_AUTO = "diffuse_auto"  # the resolver of the fields that nobody has set under conf/memory_profile/auto.yaml


@dataclass
class MemoryProfileConfig:
    """`conf/memory_profile/*.yaml`: what may be resident where, and when."""

    name: str = MISSING
    on_device: list[str] = field(default_factory=list)  # components that run on the device; others run on the CPU
    half: bool = True  # half precision on an accelerator; a CPU computes in float32
    guidance: GuidanceMode = GuidanceMode.batched
    streamed: list[str] = field(default_factory=list)  # of these, components whose blocks pass over it one by one
    resident_blocks: int = 0  # blocks of a streamed component that stay on the device
    sharded: list[str] = field(default_factory=list)  # of on_device, components whose blocks are spread over all cards
    cleanup: Cleanup = Cleanup.none  # phases: a component leaves the device when its phase ends
    cleanup_every: int = 0  # steps between emptyings of the allocator's cache, 0 for never
    batch_size: int | None = None  # images denoised together; null: as many as batch_pixels have room for
    batch_pixels: int | None = None  # of all images that are denoised together
    tiled_decode: bool = False  # a picture larger than a tile is decoded in parts
    tiled_encode: bool = False  # and encoded
    vae_tile_size: int = 32  # side of a square tile, in latents
    vae_tile_overlap: int | None = None  # of independent tiles, blended; null: parts that share norms and see no seam
    vae_tile_frames: int = 11  # of a film: latents of a tile in time
    max_side: int | None = None  # the largest width or height
    max_film_size: list[int] | None = None  # of a film, in the place of max_side: its longer and its shorter side
    max_frames: int | None = None  # the longest film
    release_to: ReleaseTo = ReleaseTo.host  # disk: a component whose phase ends is dropped, and read again when used
    budget_gib: float | None = None  # of the device, which a run keeps within; auto chooses the other fields by it
    host_gib: float | None = None  # of tensors in main memory, likewise
    step_down: bool = True  # go on with less of it where memory runs out
    storage: Storage = Storage.full  # fp8, int8, nf4: weights in fewer bits, which changes pictures


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
class TextBackendConfig:
    """`conf/text_backend/*.yaml`: who encodes the prompts of a model of films. Which option has which settings is in
    `config/text_backend.py`; those of the others are null."""

    name: str = MISSING
    file: str | None = None  # written by diffuse encode
    url: str | None = None
    token: str | None = None  # null: the environment variable DIFFUSE_TEXT_TOKEN
    timeout: float | None = None  # seconds for an answer
    retries: int | None = None
    text_encoder_sha256: str | None = None  # of the only text encoder that may have made the embeddings
    seed: int | None = None


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
    reference: str | None = None  # the file of the picture or film that quality/psnr compares with


@dataclass
class OutputConfig:
    dir: str = MISSING
    name: str | None = None
    format: OutputFormat | None = None  # png for pictures, mp4 for films
    quality: int = 95


@dataclass
class ReportConfig:
    """The report at the end of a sweep."""

    make: bool = True  # the page, the table and the plots
    sheets: bool = True  # contact sheets too
