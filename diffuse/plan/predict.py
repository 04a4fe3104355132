"""Predicts what a request takes under a profile: the real pipeline runs on tensors without storage."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import nn

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.model_sources import locate_models
from diffuse.checkpoints.weights import copied_bytes, skeleton
from diffuse.config.prompt_syntax import parse_prompt
from diffuse.config.request import RequestDraft
from diffuse.device import hardware
from diffuse.device.allocator import CUDA_CONTEXT
from diffuse.device.hardware import Hardware
from diffuse.device.profile import without_components
from diffuse.device.size_limits import Shrunk, SizeLimits
from diffuse.errors import ConfigError
from diffuse.layers.quantized import Quantization
from diffuse.pipelines.components import Role, component_quantization
from diffuse.pipelines.families import component_names, load_family, models, replaced_components
from diffuse.pipelines.pipeline import ModelPipeline
from diffuse.pipelines.refined import RefinedPipeline, build_pipeline
from diffuse.plan.networks import Plain
from diffuse.plan.planned_memory import PhasePeak, PlannedMemory, Residence
from diffuse.schema import (
    PROMPT_FIELDS,
    Cleanup,
    Dtype,
    GenerationRequest,
    HardwareConfig,
    LongPrompt,
    MemoryProfileConfig,
    PromptSyntax,
    Storage,
    TextBackendConfig,
)
from diffuse.text_backends.backend import open_text_backend

MAX_PREDICTIONS = 256  # that a process keeps
_REFINER = "refiner."  # before the names of its components
_CUBLAS_WORKSPACE = 32 << 20  # bytes, as `hardware.apply` sets it; it counts as allocated
_DECODING = ("decode", "denormalized")  # what the names of a codec's methods begin with that make pictures
_PLACES = {True: "device", False: "host"}


@dataclass(frozen=True)
class ComponentPlan:
    """One component: its weights, exactly, and where they are."""

    name: str
    role: str
    parameters: int
    nbytes: int
    dtype: str
    place: str  # device or host
    stays: bool  # on the device between phases
    blocks: int = 0  # that stream; 0 where it does not
    resident_blocks: int = 0  # of these, those that stay
    streamed_bytes: int = 0  # that pass over the device at each call
    cards: int = 1  # that its blocks are spread over; the bytes are those of all of them
    storage: str = Storage.full.value  # how its weights are stored
    full_bytes: int | None = None  # that they would take in `dtype`, where they are stored otherwise


@dataclass(frozen=True)
class Work:
    """The part of a component in a phase."""

    component: str
    calls: int
    flops: int


@dataclass(frozen=True)
class PhasePlan:
    """One phase: the most bytes of tensors that are alive at once, weights among them, and its arithmetic."""

    name: str
    device_bytes: int
    host_bytes: int  # of main memory: where the device is the CPU, those of the device too
    work: tuple[Work, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of the phase."""
        return sum(each.flops for each in self.work)


@dataclass(frozen=True)
class Prediction:
    """The memory and the arithmetic of a request under a profile. Python and its libraries come on top."""

    device: str
    batch_size: int  # images that are denoised together
    calls: int  # of the denoisers, over all batches
    components: tuple[ComponentPlan, ...]
    phases: tuple[PhasePlan, ...]

    @property
    def device_bytes(self) -> int:
        """The peak on the device; on a CPU, of the components that the profile has on it."""
        return max((phase.device_bytes for phase in self.phases), default=0)

    @property
    def host_bytes(self) -> int:
        """The peak in main memory."""
        return max((phase.host_bytes for phase in self.phases), default=0)

    @property
    def flops(self) -> int:
        """Floating-point operations of all phases."""
        return sum(phase.flops for phase in self.phases)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all components' weights in their precision."""
        return sum(component.nbytes for component in self.components)

    def as_record(self) -> dict[str, Any]:
        """Returns the prediction as plain JSON values."""
        totals = {"device_bytes": self.device_bytes, "host_bytes": self.host_bytes, "flops": self.flops}
        return {**asdict(self), **totals}


_predictions: OrderedDict[str, Prediction] = OrderedDict()
_lock = threading.Lock()  # a sweep's threads predict too, and all predictions share networks, on which hooks hang


def predict(
    cfg: DictConfig,
    request: GenerationRequest,
    profile: MemoryProfileConfig,
    *,
    hw: Hardware | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    repeated: bool = False,
) -> Prediction:
    """Predicts what `request` takes under `profile`. Reads configuration files and tokenizers, no weights.

    It is kept for the process: requests that differ in their seeds alone take the same, and so do those that differ in
    their prompts, unless these are read in chunks or have weights.

    Args:
        cfg: the composed configuration; of it, the models, the scheduler and the hardware count.
        request: with nothing left open.
        profile: a profile and no `auto`.
        hw: in place of the hardware of `cfg`; it need not be there.
        checkpoints: of the model and its refiner, where they have been found already.
        repeated: the process has made such a picture before, and holds all weights that the profile lets it hold.

    Raises:
        ConfigError, CheckpointError: the request, the profile or the checkpoint cannot be.
    """
    hw = hw or hardware.detect(cast(HardwareConfig, OmegaConf.to_object(cfg.hardware)))
    checkpoints = checkpoints or locate_models(cfg, component_names(cfg))
    key = f"{repeated} {_key(cfg, request, profile, hw, checkpoints)}"
    with _lock:
        if key not in _predictions:
            while len(_predictions) >= MAX_PREDICTIONS:
                _predictions.popitem(last=False)
            _predictions[key] = _Planner(cfg, profile, hw, checkpoints).predict(request, repeated=repeated)
        _predictions.move_to_end(key)
        return _predictions[key]


def reserved_bytes(hw: Hardware) -> int:
    """Returns the bytes of the device that are no tensors."""
    return CUDA_CONTEXT if hw.device == "cuda" else 0


def complete_request(
    cfg: DictConfig, draft: RequestDraft, hw: Hardware, checkpoints: Sequence[Checkpoint]
) -> GenerationRequest:
    """Returns the request of a draft with nothing left open, checked against the checkpoint, of whatever size.

    Raises:
        ConfigError: the checkpoint cannot make this.
    """
    return complete_fitted_request(cfg, draft, MemoryProfileConfig(name="none"), hw, checkpoints)[0]


def complete_fitted_request(
    cfg: DictConfig,
    draft: RequestDraft,
    profile: MemoryProfileConfig,
    hw: Hardware,
    checkpoints: Sequence[Checkpoint],
) -> tuple[GenerationRequest, Shrunk | None]:
    """Returns the request of a draft as `complete_request` does, shrunk to the limits of a profile where it says so.

    What was asked for comes with it then.

    Raises:
        ConfigError: the checkpoint cannot make this.
    """
    pipeline = _Planner(cfg, MemoryProfileConfig(name="none"), hw, checkpoints).pipeline
    limits = pipeline.size_limits(profile, cfg.model.size_multiple)
    request, shrunk = limits.fit(pipeline.complete(draft.request(pipeline.default_size())))
    pipeline.check(request)
    return request, shrunk


def size_limits(
    cfg: DictConfig, profile: MemoryProfileConfig, hw: Hardware, checkpoints: Sequence[Checkpoint]
) -> SizeLimits:
    """Returns the limits of a profile for what a model makes; see `DiffusionPipeline.size_limits`."""
    pipeline = _Planner(cfg, MemoryProfileConfig(name="none"), hw, checkpoints).pipeline
    return pipeline.size_limits(profile, cfg.model.size_multiple)


def _key(
    cfg: DictConfig,
    request: GenerationRequest,
    profile: MemoryProfileConfig,
    hw: Hardware,
    checkpoints: Sequence[Checkpoint],
) -> str:
    values = asdict(request) | prompt_kinds(request) | {"seed": 0}
    scheduler = OmegaConf.to_container(cfg.scheduler, resolve=True)
    sources = [f"{each.source}@{each.revision}" for each in checkpoints]
    names = component_names(cfg).values()
    configs = [
        _fingerprint(load_family(model._target_), each, own)
        for model, each, own in zip(models(cfg), checkpoints, names, strict=True)
    ]
    precisions = cfg.model.half_dtype, hw.half(Dtype.bfloat16)  # a card's age decides on the second
    parts = [values, asdict(profile), hw.key, precisions, scheduler, sources, configs]
    return json.dumps(parts, sort_keys=True, default=str)


def prompt_kinds(request: GenerationRequest) -> dict[str, Any]:
    """Returns, in the place of each prompt, what of it decides on memory and arithmetic.

    All prompts fill one row of tokens. Then it only matters which are empty and which the same: those are not encoded
    twice. One that is read in chunks has as many rows as it needs; one with weights is encoded beside an empty prompt.
    """
    texts = {name: getattr(request, name) for name in PROMPT_FIELDS}
    first: dict[str, str] = {}  # the field that has a text first
    for name, text in texts.items():
        first.setdefault(text, name)
    return {name: text if not text or _has_own_costs(text, request) else [first[text]] for name, text in texts.items()}


def _has_own_costs(text: str, request: GenerationRequest) -> bool:
    if request.long_prompt is LongPrompt.chunk:
        return True
    return request.prompt_syntax is PromptSyntax.weighted and any(part.weight != 1 for part in parse_prompt(text))


def _fingerprint(family: type[ModelPipeline], checkpoint: Checkpoint, own: Sequence[str]) -> list[Any]:
    """Returns the configurations of those components of a checkpoint that are its `own`, by their names."""
    names = [name for name, component in family.components.items() if component.config is not None and name in own]
    return [checkpoint.part(name).config(name) for name in names]


def _given_images(request: GenerationRequest) -> dict[str, tuple[int, ...]]:
    """Returns the images that a request gives to its pipeline, by argument, with the frames of a clip."""
    images: dict[str, tuple[int, ...]] = {}
    if request.input_image:
        images["image"] = ()
    if request.input_video:
        assert request.num_conditioning_frames is not None
        images["image"] = (request.num_conditioning_frames,)
    if request.last_image:
        images["last_image"] = ()
    return images


def _work(peak: PhasePeak, images: float, batches: float) -> tuple[Work, ...]:
    """Returns the work of a phase, which was followed for `1 / images` of the images and `1 / batches` of the batches.

    Arithmetic grows with the images, and calls with the batches.
    """
    return tuple(Work(name, round(peak.calls[name] * batches), round(peak.flops[name] * images)) for name in peak.flops)


class _Planner:
    """A pipeline without weights under one profile."""

    def __init__(
        self, cfg: DictConfig, profile: MemoryProfileConfig, hw: Hardware, checkpoints: Sequence[Checkpoint]
    ) -> None:
        self.cfg, self.hw = cfg, hw
        text_backend = open_text_backend(cast(TextBackendConfig, OmegaConf.to_object(cfg.text_backend)))
        if text_backend is not None:
            profile = without_components(profile, replaced_components(cfg))
        self.memory = PlannedMemory(profile, hw, cfg.model.half_dtype, self._build, self._phase, self._copied)
        families = [load_family(model._target_) for model in models(cfg)]
        self.pipeline = build_pipeline(families, checkpoints, self.memory, text_backend)

    def predict(self, request: GenerationRequest, *, repeated: bool = False) -> Prediction:
        """Runs the request and returns what it took."""
        memory, pipeline = self.memory, self.pipeline
        memory.check()
        options = cast(dict[str, Any], OmegaConf.to_container(self.cfg.scheduler, resolve=True))
        batch = pipeline.batch_size(request)
        # Whole batches are alike; each further image only adds what is kept of it.
        count = request.num_images if request.num_images <= batch else batch + request.num_images % batch
        smaller = replace(request, num_images=count)
        samplers = pipeline.plan(smaller, options)
        size = (request.height, request.width)
        inputs = {name: np.zeros((*shape, *size, 3), np.uint8) for name, shape in _given_images(request).items()}
        mask = np.ones(size, bool) if request.mask_image else None
        components = tuple(self._component(name) for name in memory.dtypes)  # built before anything is followed
        if repeated:
            memory.load_all()
        with memory.following():
            image, last_image = inputs.get("image"), inputs.get("last_image")
            output = pipeline(smaller, samplers, image=image, mask=mask, last_image=last_image)
        kept = output.frames[0].nbytes + sum(latents[0].nbytes for latents in output.latents.values())
        more = (request.num_images - count) * kept  # bytes of the results that were not followed
        images = request.num_images / count
        batches = math.ceil(request.num_images / batch) / math.ceil(count / batch)
        on_cpu, cuda = self.hw.device == "cpu", self.hw.device == "cuda"
        phases = tuple(
            PhasePlan(
                name,
                peak.device + (_CUBLAS_WORKSPACE if cuda and peak.device else 0),
                (peak.total if on_cpu else peak.host) + more,
                _work(peak, 1, 1) if name == "encode" else _work(peak, images, batches),
            )
            for name, peak in memory.phases.items()
        )
        calls = round(len(output.step_seconds) * batches)
        return Prediction(self.hw.device, batch, calls, components, phases)

    def _component(self, full: str) -> ComponentPlan:
        residence: Residence = self.memory.residence(full)
        component = self.memory.component(full)
        blocks, quantization = residence.block_bytes, self._quantization(full)
        return ComponentPlan(
            full,
            self._role(full).value,
            residence.network.parameters,
            residence.nbytes,
            self.memory.dtypes[full],
            _PLACES[component.on_device],
            component.on_device and self.memory.profile.cleanup is not Cleanup.phases,
            len(blocks),
            residence.resident,
            sum(blocks[residence.resident :]),
            residence.cards,
            Storage.full.value if quantization is None else quantization.storage.value,
            None if quantization is None else residence.network.full_bytes(component.dtype),
        )

    def _model(self, full: str) -> tuple[ModelPipeline, str]:
        """Returns the model that has the component, and the component's name in it."""
        if isinstance(self.pipeline, RefinedPipeline):
            refines = full.startswith(_REFINER)
            return (self.pipeline.refiner if refines else self.pipeline.base), full.removeprefix(_REFINER)
        assert isinstance(self.pipeline, ModelPipeline)
        return self.pipeline, full

    def _role(self, full: str) -> Role:
        model, name = self._model(full)
        return model.components[name].role

    def _quantization(self, full: str) -> Quantization | None:
        model, name = self._model(full)
        return component_quantization(model.components[name], self.memory.profile.storage)

    def _build(self, full: str) -> Plain:
        model, name = self._model(full)
        module, config = model.components[name].module, model.configs[name]
        if module is None:
            raise ConfigError(f"{full}: has no network")

        def build() -> nn.Module:
            assert module is not None
            return module(config)

        return Plain(partial(skeleton, build), (module, repr(config)), self._quantization(full))

    def _copied(self, full: str, module: nn.Module) -> int:
        model, name = self._model(full)
        return copied_bytes(model.checkpoint.part(name), name, module, model.components[name].rename)

    def _phase(self, full: str, method: str) -> str:
        role = self._role(full)
        if role is Role.denoiser:
            return "refine" if full.startswith(_REFINER) else "denoise"
        if role in (Role.sound_codec, Role.vocoder):
            return "decode"
        decodes = role in (Role.image_codec, Role.video_codec) and method.startswith(_DECODING)
        return "decode" if decodes else "encode"
