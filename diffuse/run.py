"""One run: the request, the pipeline, the pictures, the record."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse import hardware, hub, media, memory_profile, record, tracking, validation
from diffuse.checkpoint import Checkpoint
from diffuse.configuration import load_group
from diffuse.errors import ConfigError, RunError
from diffuse.hardware import Hardware
from diffuse.inputs import Inputs
from diffuse.pipelines.refined import request_fields, staged
from diffuse.request import Generation, GenerationRequest, MemoryProfileConfig
from diffuse.terminal import Progress, saved, say, unheard
from diffuse.validation import Draft

KEPT = 2  # pipelines that a process keeps, so that a sweep's next job loads nothing


@dataclass(frozen=True)
class Prepared:
    """All that a request needs to be run. No weight has been read yet."""

    cfg: DictConfig
    request: GenerationRequest
    hardware: Hardware
    profile: MemoryProfileConfig
    checkpoint: Checkpoint
    pipeline: Any
    scheduler: Any
    inputs: Inputs | None = None
    refiner: Checkpoint | None = None


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
    media.check_output(Path(cfg.output.dir))
    for draft in drafts:
        media.file_stem(draft.prompt, draft.seed, cfg.output.name)
    jobs = [prepare(cfg, draft) for draft in drafts]
    tracker = tracking.open_tracker(cfg.tracking)
    try:
        paths = [path for job in jobs for path in _run(job, tracker, overrides, sweep)]
    finally:
        for warning in tracker.close():
            say(f"warning: {warning}")
    if error := unheard():
        raise RunError(f"standard output cannot be written: {error.strerror}; the pictures are in {cfg.output.dir}")
    return paths


def _run(job: Prepared, tracker: tracking.Tracker, overrides: Sequence[str], sweep: str | None) -> list[Path]:
    """One run: what is to be done is recorded first, so that a run that fails is recorded too."""
    request, output = job.request, job.cfg.output
    about = record.of_run(
        job.cfg,
        overrides,
        request,
        weights=_weights(job.checkpoint) | ({} if job.refiner is None else {"refiner": _weights(job.refiner)}),
        hardware={
            **job.hardware.as_record(),
            "dtypes": job.pipeline.memory.dtypes,
            "memory_profile": asdict(job.profile),
        },
        inputs={} if job.inputs is None else job.inputs.as_record(request),
    )
    tracker.start(
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
            say(note)
        steps = f"{request.num_inference_steps - request.skipped_steps} of {steps} (strength {request.strength:g})"
        say(f"{request.input_image}: {steps} are run, at {request.width} x {request.height}")
    try:
        with Progress(request.prompt) as progress:
            generation = _generate(job, progress.step)
        for warning in generation.warnings:
            say(f"warning: {warning}")
        paths, images = [], []
        for index, image in enumerate(generation.images):
            made = record.of_image(about, index, media.pixels_sha256(image))
            path = media.save_image(
                image,
                Path(output.dir),
                media.file_stem(request.prompt, request.seeds[index], output.name),
                format=output.format,
                quality=output.quality,
                record=made,
                parameters=media.parameters_text(made),
            )
            saved(path)
            tracker.log_media(path, index)
            paths.append(path)
            images.append(made["image"])
        tracker.log_text("record.json", record.text(record.of_images(about, images)))
        tracker.set_tags({"diffuse.pixels_sha256": " ".join(image["pixels_sha256"] for image in images)})
        tracker.log_steps(generation.step_seconds)
        tracker.log_metrics(
            {f"time/{name}": seconds for name, seconds in generation.timings.items()}
            | {f"memory/{name}": gib for name, gib in generation.memory.items()}
        )
        tracker.finish(None)
    except BaseException as error:
        tracker.finish(f"{type(error).__name__}: {error}", interrupted=isinstance(error, KeyboardInterrupt))
        raise
    pictures = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    what = f"seed {request.seed}, {request.width} x {request.height}, {steps}"
    where = f"{job.profile.name} on {job.hardware.name or job.hardware.device}"
    say(f"{pictures} in {generation.timings['total_s']:.1f} s: {what}, {where}")
    return paths


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


def generate(cfg: DictConfig) -> Generation:
    """The pictures that `cfg` asks for, neither saved nor recorded.

    Raises:
        DiffuseError: the request is wrong, or the run failed.
    """
    drafts = validation.drafts(cfg)
    if len(drafts) > 1:
        raise ConfigError(f"prompt_file={cfg.prompt_file}: holds {len(drafts)} prompts; here one is made at a time")
    job = prepare(cfg, drafts[0])
    return _generate(job)


def prepare(cfg: DictConfig, draft: Draft) -> Prepared:
    """Brings together what the run needs, and checks that it fits, before a weight is read.

    Raises:
        ConfigError, HardwareError, CheckpointError: it does not.
    """
    hw = hardware.detect(_object(cfg.hardware))
    hardware.apply(hw)
    profiles = load_group("memory_profile")
    thresholds = {str(name): float(need) for name, need in cfg.model.min_vram_gib.items()}
    profile = memory_profile.choose(cfg.memory_profile, profiles, thresholds, hw)

    models = stages(cfg)
    families = [family(model._target_) for model in models]
    validation.refuse_unknown(draft, request_fields(families), " refiner=".join(model.name for model in models))
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

    request = pipeline.complete(draft.request(pipeline.default_size()))
    pipeline.check(request)
    pipeline.memory.check()
    memory_profile.check_size(profile, request.width, request.height)
    scheduler = pipeline.plan(request, OmegaConf.to_container(cfg.scheduler, resolve=True))
    checkpoint, refiner = checkpoints[0], checkpoints[1] if len(checkpoints) > 1 else None
    return Prepared(cfg, request, hw, profile, checkpoint, pipeline, scheduler, draft.inputs, refiner)


def _generate(job: Prepared, on_step: Any = None) -> Generation:
    hardware.apply(job.hardware)
    started_from = {} if job.inputs is None else job.inputs.fitted(job.request)
    generation: Generation = job.pipeline(job.request, job.scheduler, **started_from, on_step=on_step)
    return generation


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
