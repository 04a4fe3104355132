"""What can be asked for: the typed configuration, and the frozen request made from it. No torch, no files."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

SEED_LIMIT = 2**63  # torch's generators take no larger seed
MOST_TOGETHER = 16  # images of a batch, unless its size is given; small ones gain nothing from larger batches


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


class Guidance(Enum):
    batched = "batched"
    sequential = "sequential"


class Cleanup(Enum):
    none = "none"
    phases = "phases"


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
    """Where one component comes from in place of the checkpoint's own; all null where it is that."""

    source: str | None = None  # a whole checkpoint, or a folder or hub repository that is this component
    revision: str | None = None
    variant: str | None = None


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
    source: str | None = None  # a folder in the diffusers layout, or a hub repository
    revision: str | None = None
    variant: str | None = None  # the published file variant, such as fp16
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
    source: str | None = None  # a folder in the diffusers layout, or a hub repository
    revision: str | None = None
    variant: str | None = None
    request_defaults: dict[str, Any] = field(default_factory=dict)  # request field -> value


@dataclass
class MemoryProfileConfig:
    """`conf/memory_profile/*.yaml`: what may be resident where, and when."""

    name: str = MISSING
    on_device: list[str] = field(default_factory=list)  # components that run on the device; others run on the CPU
    half: bool = True  # half precision on an accelerator; a CPU computes in float32
    guidance: Guidance = Guidance.batched
    cleanup: Cleanup = Cleanup.none  # phases: a component leaves the device when its phase ends
    cleanup_every: int = 0  # steps between emptyings of the allocator's cache, 0 for never
    batch_size: int | None = None  # images denoised together; null: as many as batch_pixels have room for
    batch_pixels: int | None = None  # of all images that are denoised together
    tiled_decode: bool = False
    max_side: int | None = None  # the largest width or height

    def together(self, width: int, height: int) -> int:
        """How many images of that size (pixels) are denoised together."""
        if self.batch_size is not None:
            return max(self.batch_size, 1)
        return min(max((self.batch_pixels or 0) // (width * height), 1), MOST_TOGETHER)


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
    """`conf/tracking/*.yaml`: where the record goes."""

    name: str = MISSING  # mlflow | none
    uri: str | None = None
    artifact_location: str | None = None
    experiment: str = "diffuse"
    journal: str | None = None  # where runs wait until they are in the store


@dataclass
class ObjectiveConfig:
    """What a run is worth to a sweeper that looks for the best settings."""

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
    """What is made at the end of a sweep."""

    make: bool = True  # the page, the table and the plots
    sheets: bool = True  # contact sheets too


@dataclass
class Config:
    """The root of the configuration. A null request field takes the model's default."""

    prompt: str | None = None
    prompt_file: str | None = None
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    long_prompt: LongPrompt | None = None
    prompt_syntax: PromptSyntax | None = None
    seed: int | None = None
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    timesteps: list[int] | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    original_width: int | None = None
    original_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    target_width: int | None = None
    target_height: int | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    denoising_end: float | None = None
    input_image: str | None = None
    mask_image: str | None = None
    strength: float | None = None
    resize: Resize | None = None
    keep_unmasked: bool = False
    suite: Suite | None = None  # runs and checks of its own, in place of a request
    model: ModelConfig = field(default_factory=ModelConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    scheduler: Any = MISSING  # keys are the chosen sampler's own, see conf/scheduler
    memory_profile: MemoryProfileConfig = field(default_factory=MemoryProfileConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


@dataclass(frozen=True)
class GenerationRequest:
    """What is to be made, with nothing left open. Image `i` uses seed `seed + i`.

    Fields with a default are not for every family: a pipeline names those it knows as its `request_fields`, and fills
    them where they are None.
    """

    prompt: str
    negative_prompt: str | None  # None is no negative prompt at all, which to SDXL is not the same as an empty one
    seed: int
    num_images: int
    width: int  # pixels
    height: int  # pixels
    num_inference_steps: int
    guidance_scale: float
    timesteps: tuple[int, ...] | None = None  # those to visit, which fall, instead of the sampler's own choice
    guidance_rescale: float = 0.0  # 0 to 1, see diffuse.sampling.guidance
    prompt_2: str | None = None  # for the second text encoder
    negative_prompt_2: str | None = None
    long_prompt: LongPrompt = LongPrompt.cut  # what becomes of more text than the encoder takes, see pipelines.prompt
    prompt_syntax: PromptSyntax = PromptSyntax.plain  # of all four, see diffuse.config.prompt_syntax
    original_width: int | None = None  # pixels of the picture that the model is to imagine scaled and cropped
    original_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    target_width: int | None = None
    target_height: int | None = None
    aesthetic_score: float | None = None  # 0 to 10: how well SDXL's refiner is to imagine the picture pleases
    negative_aesthetic_score: float | None = None
    denoising_end: float | None = None  # 0 to 1: the share of the noise's way after which a refiner takes over
    input_image: str | None = None  # the file of a picture to start from
    mask_image: str | None = None  # and of its mask: white is painted anew
    strength: float | None = None  # above 0, up to 1: how much of the way from noise is gone; None without a picture
    resize: Resize | None = None  # how a picture of another size is made to fit
    keep_unmasked: bool = False  # pixels outside the mask come back unchanged

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.num_images)]

    @property
    def skipped_steps(self) -> int:
        """Of `num_inference_steps`, those at the noisy end that starting from a picture leaves out."""
        steps = self.num_inference_steps
        return 0 if self.strength is None else steps - min(int(steps * self.strength), steps)
