"""One run: the request, the pipeline, the pictures, the record."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffuse import hardware, hub, media, memory_profile, record, tracking, validation
from diffuse.checkpoint import Checkpoint
from diffuse.configuration import load_group
from diffuse.errors import ConfigError, RunError, Stop
from diffuse.generation import Generation, recorded
from diffuse.hardware import Hardware
from diffuse.inputs import Inputs
from diffuse.pipelines.refined import request_fields, staged
from diffuse.request import GenerationRequest, Made, MemoryProfileConfig, Step, TrackingConfig
from diffuse.terminal import Progress, saved, say, unheard
from diffuse.validation import Draft

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2  # pipelines that a process keeps, so that a sweep's next job loads nothing


@dataclass(frozen=True)
class Opened:
    """A pipeline, and what it runs on. No weight has been read yet."""

    pipeline: Any
    hardware: Hardware
    profile: MemoryProfileConfig
    checkpoints: Sequence[Checkpoint]  # of the model and, where there is one, its refiner


@dataclass(frozen=True)
class Prepared:
    """All that a request needs to be run."""

    cfg: DictConfig
    request: GenerationRequest
    opened: Opened
    scheduler: Any
    inputs: Inputs | None = None
    latents: Tensor | None = None


@dataclass(frozen=True)
class Told:
    """What the outside is told of a run while it goes on."""

    on_step: Callable[[Step], None] | None = None
    on_saved: Callable[[Path], None] | None = None
    messages: bool = True  # a bar, and lines, on standard error

    def say(self, line: str) -> None:
        """A line for the user."""
        if self.messages:
            say(line)


_pipelines: OrderedDict[str, Any] = OrderedDict()


def run(
    cfg: DictConfig, *, drafts: Sequence[Draft] | None = None, overrides: Sequence[str] = (), sweep: str | None = None
) -> list[Path]:
    """Makes, saves and records what `cfg` asks for; prints each saved path on standard output.

    `drafts` are those of `cfg`, where they have been made already; `overrides` those it was composed with; `sweep` what
    the jobs of one sweep have in common. A `prompt_file` makes one run of each prompt. All of them are checked before
    the first begins.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or a run failed, and is recorded as failed.
    """
    drafts = validation.drafts(cfg) if drafts is None else drafts
    made = generate(cfg, drafts, overrides=overrides, sweep=sweep, save=True, told=Told(on_saved=saved))
    paths = [path for generation in made for path in generation.paths]
    if error := unheard():
        raise RunError(f"standard output cannot be written: {error.strerror}; the pictures are in {cfg.output.dir}")
    return paths


def generate(
    cfg: DictConfig,
    drafts: Sequence[Draft],
    *,
    overrides: Sequence[str] = (),
    sweep: str | None = None,
    latents: Tensor | None = None,
    save: bool = False,
    told: Told | None = None,
) -> list[Generation]:
    """Makes what `drafts`, those of `cfg`, ask for, all of which are checked before the first begins.

    `latents` are the initial noise `[N, C, h, w]`; see `run` for what else there is. Unless `save`, nothing is written
    and nothing is recorded in the tracking store.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or a run failed, and is recorded as failed.
    """
    told = told or Told(messages=False)
    if save:
        media.check_output(Path(cfg.output.dir))
        for draft in drafts:
            media.file_stem(draft.prompt, draft.seed, cfg.output.name)
    jobs = [prepare(cfg, draft, latents) for draft in drafts]
    tracker = tracking.open_tracker(cfg.tracking if save else TrackingConfig(name="none"))
    try:
        return [_run(job, tracker, overrides, sweep, save, told) for job in jobs]
    finally:
        for warning in tracker.close():
            told.say(f"warning: {warning}")


def _run(
    job: Prepared, tracker: tracking.Tracker, overrides: Sequence[str], sweep: str | None, save: bool, told: Told
) -> Generation:
    """One run: what is to be done is recorded first, so that a run that fails is recorded too."""
    request, output = job.request, job.cfg.output
    model, *refiners = job.opened.checkpoints
    about = record.of_run(
        job.cfg,
        overrides,
        request,
        weights=_weights(model) | ({"refiner": _weights(refiners[0])} if refiners else {}),
        hardware={
            **job.opened.hardware.as_record(),
            "dtypes": job.opened.pipeline.memory.dtypes,
            "memory_profile": asdict(job.opened.profile),
        },
        inputs=_inputs(job),
    )
    tracked = tracker.start(
        media.file_stem(request.prompt, request.seed, output.name),
        record.flat(about["config"]),
        _tags(about, sweep),
        {
            "config.yaml": record.yaml_text(about["config"]),
            "overrides.yaml": record.yaml_text(about["overrides"]),
            "record.json": record.text(about),
        },
    )
    steps = f"{request.num_inference_steps} steps"
    if job.inputs is not None:
        for note in job.inputs.notes:
            told.say(note)
        steps = f"{request.num_inference_steps - request.skipped_steps} of {steps} (strength {request.strength:g})"
        told.say(f"{request.input_image}: {steps} are run, at {request.width} x {request.height}")
    try:
        with Progress(request.prompt, shown=told.messages) as progress:
            made = _make(job, [progress.step, told.on_step])
        for warning in made.warnings:
            told.say(f"warning: {warning}")
        generation = Generation(
            made.images,
            made.latents.clone(),  # outside torch's inference mode, whose tensors are good for less
            made.timings,
            made.step_seconds,
            made.memory,
            made.warnings,
            recorded(about, made.images),
        )
        for index in range(request.num_images if save else 0):
            path = generation.save_one(index, Path(output.dir), output.name, output.format, output.quality)
            generation.paths.append(path)
            if told.on_saved is not None:
                told.on_saved(path)
            tracked.log_media(path, index)
        tracked.log_text("record.json", record.text(generation.record))
        digests = [image["pixels_sha256"] for image in generation.record["images"]]
        tracked.set_tags({"diffuse.pixels_sha256": " ".join(digests)})
        tracked.log_steps(generation.step_seconds)
        tracked.log_metrics(
            {f"time/{name}": seconds for name, seconds in generation.timings.items()}
            | {f"memory/{name}": gib for name, gib in generation.memory.items()}
        )
        tracked.finish(None)
    except BaseException as error:
        tracked.finish(f"{type(error).__name__}: {error}", interrupted=isinstance(error, KeyboardInterrupt | Stop))
        raise
    pictures = "1 picture" if request.num_images == 1 else f"{request.num_images} pictures"
    what = f"seed {request.seed}, {request.width} x {request.height}, {steps}"
    where = f"{job.opened.profile.name} on {job.opened.hardware.name or job.opened.hardware.device}"
    told.say(f"{pictures} in {generation.timings['total_s']:.1f} s: {what}, {where}")
    return generation


def _inputs(job: Prepared) -> dict[str, Any]:
    """What the pictures start from, beside the seed."""
    found = {} if job.inputs is None else job.inputs.as_record(job.request)
    if job.latents is not None:
        digest = hashlib.sha256(job.latents.numpy().tobytes()).hexdigest()
        found["latents"] = {"sha256": digest, "shape": list(job.latents.shape)}
    return found


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "variant": checkpoint.variant,
        "sha256": checkpoint.digest(),
    }


def _tags(about: dict[str, Any], sweep: str | None) -> dict[str, str]:
    tags = {
        "diffuse.version": about["diffuse"],
        "diffuse.weights": f"{about['weights']['source']}@{about['weights']['sha256']}",
        "diffuse.sweep": sweep,
        "mlflow.source.git.commit": (about["git"] or {}).get("commit"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def prepare(cfg: DictConfig, draft: Draft, latents: Tensor | None = None) -> Prepared:
    """Brings together what the run needs, and checks that it fits, before a weight is read.

    Raises:
        ConfigError, HardwareError, CheckpointError: it does not.
    """
    models = stages(cfg)
    known = request_fields([family(model._target_) for model in models])
    validation.refuse_unknown(draft, known, " refiner=".join(model.name for model in models))
    opened = open_pipeline(cfg)
    pipeline = opened.pipeline
    request = pipeline.complete(draft.request(pipeline.default_size()))
    pipeline.check(request)
    pipeline.latent_shape(request, latents)
    memory_profile.check_size(opened.profile, request.width, request.height)
    scheduler = pipeline.plan(request, OmegaConf.to_container(cfg.scheduler, resolve=True))
    return Prepared(cfg, request, opened, scheduler, draft.inputs, latents)


def open_pipeline(cfg: DictConfig) -> Opened:
    """Finds the checkpoints, checks that their parts fit together and to the profile, and keeps the pipeline.

    Raises:
        ConfigError, HardwareError, CheckpointError: they do not.
    """
    hw = hardware.detect(_object(cfg.hardware))
    hardware.apply(hw)
    profiles = load_group("memory_profile")
    thresholds = {str(name): float(need) for name, need in cfg.model.min_vram_gib.items()}
    profile = memory_profile.choose(cfg.memory_profile, profiles, thresholds, hw)

    models = stages(cfg)
    families = [family(model._target_) for model in models]
    checkpoints = [
        hub.locate(
            model.source,
            revision=model.revision,
            variant=model.variant,
            components=(*pipeline_class.components, "scheduler"),
        )
        for model, pipeline_class in zip(models, families, strict=True)
    ]
    identities = [[checkpoint.identity, model._target_] for checkpoint, model in zip(checkpoints, models, strict=True)]
    key = json.dumps([identities, hw.key, cfg.model.half_dtype, asdict(profile)], default=str)
    pipeline = _kept(key)
    if pipeline is None:
        instead = memory_profile.lighter(profile, profiles, thresholds)
        memory = memory_profile.Memory(profile, hw, cfg.model.half_dtype, instead)
        pipeline = _keep(key, staged(families, checkpoints, memory))
    pipeline.memory.check()
    return Opened(pipeline, hw, profile, checkpoints)


def _make(job: Prepared, listeners: Sequence[Callable[[Step], None] | None] = ()) -> Made:
    def on_step(step: Step) -> None:
        for listener in listeners:
            if listener is not None:
                listener(step)

    hardware.apply(job.opened.hardware)
    started_from = {} if job.inputs is None else job.inputs.fitted(job.request)
    noise = {} if job.latents is None else {"latents": job.latents}
    made: Made = job.opened.pipeline(job.request, job.scheduler, **started_from, **noise, on_step=on_step)
    return made


def stages(cfg: DictConfig) -> list[DictConfig]:
    """The models that make a picture, one after the other."""
    return [cfg.model] if cfg.refiner._target_ is None else [cfg.model, cfg.refiner]


def family(target: str) -> Any:
    """The pipeline class that `model._target_` names; `validation` has seen that it is in diffuse.pipelines."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        found = None
    if not isinstance(found, type) or found.__module__ != module or not hasattr(found, "components"):
        raise ConfigError(f"model._target_={target}: there is no such pipeline; conf/model has those there are")
    return found


def _kept(key: str) -> Any:
    if key in _pipelines:
        _pipelines.move_to_end(key)
    return _pipelines.get(key)


def _keep(key: str, pipeline: Any) -> Any:
    """Keeps `pipeline`; the one not used for longest goes, and its weights with it, before the new one's are read."""
    while len(_pipelines) >= KEPT:
        _pipelines.popitem(last=False)[1].memory.release_all()
    _pipelines[key] = pipeline
    return pipeline


def _object(node: DictConfig) -> Any:
    return OmegaConf.to_object(node)
