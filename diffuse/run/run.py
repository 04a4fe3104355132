"""One run: the request, the pipeline, the pictures, the record."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from diffuse import tracking
from diffuse.checkpoints.checkpoint import Checkpoint, weights_record, weights_tag
from diffuse.checkpoints.model_sources import locate_models
from diffuse.config import objective
from diffuse.config import request as validation
from diffuse.config.inputs import Inputs
from diffuse.config.request import Draft
from diffuse.device import hardware
from diffuse.device import memory as memory_profile
from diffuse.errors import RunError, Stop
from diffuse.media import files as media
from diffuse.media.images import PictureInput
from diffuse.pipelines.refined import request_fields
from diffuse.record import record
from diffuse.run import open as opening
from diffuse.run.generation import Generation, recorded
from diffuse.run.open import Opened
from diffuse.sampling.results import Made, Step
from diffuse.schema import GenerationRequest, TrackingConfig
from diffuse.terminal import Progress, saved, say, unheard

if TYPE_CHECKING:
    from torch import Tensor


_NO_PARAMETERS = ("tracking", "report")  # of the run: who is told of it, and what is made of many


@dataclass(frozen=True)
class Prepared:
    """All that a request needs to be run."""

    cfg: DictConfig
    request: GenerationRequest
    opened: Opened
    scheduler: Any
    inputs: Inputs | None = None
    latents: Tensor | None = None
    reference: PictureInput | None = None  # what the pictures are to come near to


class Place(NamedTuple):
    """Which job of which sweep a run is."""

    sweep: str  # its identity
    key: str  # the job's
    name: str  # what people call it
    run_id: str  # the tag by which the tracking store finds the run
    again: bool  # it may be in there already


@dataclass(frozen=True)
class Beside:
    """The seeds of pictures that a run's are made together with."""

    before: Sequence[int]
    after: Sequence[int]

    def jobs(self, job: Prepared) -> tuple[int, list[Prepared]]:
        """`job` among theirs, and its place."""

        def alike(seed: int) -> Prepared:
            return replace(job, request=replace(job.request, seed=seed, num_images=1))

        return len(self.before), [*map(alike, self.before), job, *map(alike, self.after)]


@dataclass(frozen=True)
class Begun:
    """A run that is recorded as begun."""

    job: Prepared
    about: dict[str, Any]  # its record, before there are pictures
    tracked: tracking.TrackedRun

    @contextmanager
    def watched(self) -> Iterator[None]:
        """An error in the block is recorded as the run's end."""
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise

    def failed(self, error: BaseException) -> None:
        """Records why the run ended without its pictures."""
        stopped = isinstance(error, KeyboardInterrupt | Stop | SystemExit)
        self.tracked.finish(f"{type(error).__name__}: {error}", interrupted=stopped)


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


def run(cfg: DictConfig, *, drafts: Sequence[Draft] | None = None, overrides: Sequence[str] = ()) -> list[Path]:
    """Makes, saves and records what `cfg` asks for; prints each saved path on standard output.

    `drafts` are those of `cfg`, where they have been made already; `overrides` those it was composed with. A
    `prompt_file` makes one run of each prompt. All of them are checked before the first begins.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or a run failed, and is recorded as failed.
    """
    drafts = validation.drafts(cfg) if drafts is None else drafts
    made = generate(cfg, drafts, overrides=overrides, save=True, told=Told(on_saved=saved))
    paths = [path for generation in made for path in generation.paths]
    if error := unheard():
        raise RunError(f"standard output cannot be written: {error.strerror}; the pictures are in {cfg.output.dir}")
    return paths


def generate(
    cfg: DictConfig,
    drafts: Sequence[Draft],
    *,
    overrides: Sequence[str] = (),
    latents: Tensor | None = None,
    save: bool = False,
    beside: Beside | None = None,
    told: Told | None = None,
) -> list[Generation]:
    """Makes what `drafts`, those of `cfg`, ask for, all of which are checked before the first begins.

    `latents` are the initial noise `[N, C, h, w]`; see `run` for what else there is. Unless `save`, nothing is written
    and nothing is recorded in the tracking store. `beside` are pictures to be made together with those of each run, and
    not kept: the bits of a picture can depend on them.

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
        return [_run(job, tracker, overrides, save, told, beside) for job in jobs]
    finally:
        for warning in tracker.close():
            told.say(f"warning: {warning}")


def _run(
    job: Prepared,
    tracker: tracking.Tracker,
    overrides: Sequence[str],
    save: bool,
    told: Told,
    beside: Beside | None,
) -> Generation:
    """One run by itself."""
    begun = begin(job, tracker, overrides)
    request = job.request
    steps = f"{request.num_inference_steps} steps"
    if job.inputs is not None:
        for note in job.inputs.notes:
            told.say(note)
        steps = f"{request.num_inference_steps - request.skipped_steps} of {steps} (strength {request.strength:g})"
        told.say(f"{request.input_image}: {steps} are run, at {request.width} x {request.height}")
    with begun.watched():
        with Progress(request.prompt, shown=told.messages) as progress:
            place, jobs = (0, [job]) if beside is None else beside.jobs(job)
            made = make(jobs, [progress.step, told.on_step])[place]
        for warning in made.warnings:
            told.say(f"warning: {warning}")
        generation = finish(begun, made, save, told.on_saved)
    pictures = "1 picture" if request.num_images == 1 else f"{request.num_images} pictures"
    what = f"seed {request.seed}, {request.width} x {request.height}, {steps}"
    where = f"{job.opened.profile.name} on {job.opened.hardware.name or job.opened.hardware.device}"
    told.say(f"{pictures} in {generation.timings['total_s']:.1f} s: {what}, {where}")
    return generation


def begin(job: Prepared, tracker: tracking.Tracker, overrides: Sequence[str], place: Place | None = None) -> Begun:
    """Records what is to be done, so that a run that fails is recorded too. `place` is of the jobs of sweeps."""
    request = job.request
    together = job.opened.pipeline.memory.together(request.width, request.height)
    about = record.of_run(
        job.cfg,
        overrides,
        request,
        weights=_weights(job.opened.checkpoints),
        hardware={
            **job.opened.hardware.as_record(),
            "dtypes": job.opened.pipeline.memory.dtypes,
            "memory_profile": {**asdict(job.opened.profile), "batch_size": together},
        },
        inputs=_inputs(job),
    )
    return _recorded(job, about, tracker, place)


def begin_like(
    begun: Begun, cfg: DictConfig, draft: Draft, tracker: tracking.Tracker, overrides: Sequence[str], place: Place
) -> Begun:
    """`prepare` and `begin` for a run that differs from `begun` in its seed and its folder alone: in a third of the
    time."""
    job = replace(
        begun.job,
        cfg=cfg,
        request=replace(begun.job.request, seed=draft.seed),
        scheduler=copy.deepcopy(begun.job.scheduler),  # which keeps what it has seen
        inputs=draft.inputs,
        reference=draft.reference,
    )
    about = record.of_like(begun.about, overrides, seed=draft.seed, folder=cfg.output.dir)
    return _recorded(job, about, tracker, place)


def _recorded(job: Prepared, about: dict[str, Any], tracker: tracking.Tracker, place: Place | None) -> Begun:
    """Tells the tracking store of a run that begins."""
    request = job.request
    tracked = tracker.start(
        media.file_stem(request.prompt, request.seed, job.cfg.output.name) if place is None else place.name,
        _parameters(about["config"]),
        _tags(about) | ({} if place is None else {"diffuse.sweep": place.sweep, "diffuse.job": place.key}),
        {
            "config.yaml": record.yaml_text(about["config"]),
            "overrides.yaml": record.yaml_text(about["overrides"]),
            "record.json": record.text(about),
        },
        weights=about["weights"],
        id=None if place is None else place.run_id,
        again=place is not None and place.again,
    )
    return Begun(job, about, tracked)


def make(jobs: Sequence[Prepared], listeners: Sequence[Callable[[Step], None] | None] = ()) -> list[Made]:
    """What the pipeline makes of each of `jobs`, which differ in their seeds alone and are made together."""

    def on_step(step: Step) -> None:
        for listener in listeners:
            if listener is not None:
                listener(step)

    job = jobs[0]
    hardware.apply(job.opened.hardware)
    started_from = {} if job.inputs is None else job.inputs.fitted(job.request)
    noise = {} if job.latents is None else {"latents": job.latents}
    seeds = [seed for each in jobs for seed in each.request.seeds]
    made: Made = job.opened.pipeline(job.request, job.scheduler, **started_from, **noise, seeds=seeds, on_step=on_step)
    made.together = tuple(seeds)
    return made.split([each.request.num_images for each in jobs])


def finish(begun: Begun, made: Made, save: bool, on_saved: Callable[[Path], None] | None = None) -> Generation:
    """The pictures with their record; where they are to be saved, also in files and in the tracking store."""
    output, tracked = begun.job.cfg.output, begun.tracked
    about = {**begun.about, "timings": dict(made.timings)}
    if len(made.together) > len(made.images):
        about["batch"] = {"seeds": list(made.together), "first": made.first}
    generation = Generation(
        made.images,
        made.latents.clone(),  # outside torch's inference mode, whose tensors are good for less
        made.timings,
        made.step_seconds,
        made.memory,
        made.warnings,
        recorded(about, made.images),
        quality=objective.quality(made.images, begun.job.reference),
    )
    for index in range(len(made.images) if save else 0):
        path = generation.save_one(index, Path(output.dir), output.name, output.format, output.quality)
        generation.paths.append(path)
        if on_saved is not None:
            on_saved(path)
        tracked.log_media(path, index)
    tracked.log_text("record.json", record.text(generation.record))
    digests = [image["pixels_sha256"] for image in generation.record["images"]]
    tracked.set_tags({"diffuse.pixels_sha256": " ".join(digests)})
    tracked.log_steps(generation.step_seconds)
    tracked.log_metrics(generation.metrics)
    tracked.finish(None)
    return generation


def _inputs(job: Prepared) -> dict[str, Any]:
    """What the pictures start from, beside the seed."""
    found = {} if job.inputs is None else job.inputs.as_record(job.request)
    if job.latents is not None:
        digest = hashlib.sha256(job.latents.numpy().tobytes()).hexdigest()
        found["latents"] = {"sha256": digest, "shape": list(job.latents.shape)}
    return found


def _weights(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    model, *refiners = checkpoints
    return weights_record(model) | ({"refiner": weights_record(refiners[0])} if refiners else {})


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key what of the configuration is set, and says something of the run; `config.yaml` has all of it."""
    flat = record.flat({name: value for name, value in config.items() if name not in _NO_PARAMETERS})
    return {name: value for name, value in flat.items() if value is not None}


def _tags(about: dict[str, Any]) -> dict[str, str]:
    tags = {
        "diffuse.version": about["diffuse"],
        "diffuse.weights": weights_tag(about["weights"]),
        "mlflow.source.git.commit": (about["git"] or {}).get("commit"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def prepare(cfg: DictConfig, draft: Draft, latents: Tensor | None = None, opened: Opened | None = None) -> Prepared:
    """Brings together what the run needs, and checks that it fits, before a weight is read. `opened` is what
    `open_pipeline` gives for `cfg`, where that is known already.

    Raises:
        ConfigError, HardwareError, CheckpointError: it does not.
    """
    models = opening.stages(cfg)
    known = request_fields([opening.family(model._target_) for model in models])
    validation.refuse_unknown(draft, known, " refiner=".join(model.name for model in models))
    opened = opened or opening.open_pipeline(cfg)
    pipeline = opened.pipeline
    request = pipeline.complete(draft.request(pipeline.default_size()))
    pipeline.check(request)
    pipeline.latent_shape(request, latents)
    memory_profile.check_size(opened.profile, request.width, request.height)
    scheduler = pipeline.plan(request, OmegaConf.to_container(cfg.scheduler, resolve=True))
    objective.check_size(draft.reference, request.width, request.height)
    return Prepared(cfg, request, opened, scheduler, draft.inputs, latents, draft.reference)


def weights(cfg: DictConfig) -> dict[str, Any]:
    """What the record would say of the weights. Raises ConfigError or CheckpointError where they are not there."""
    return _weights(locate_models(cfg, opening.folders(cfg)))
