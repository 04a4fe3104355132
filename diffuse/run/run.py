"""One run, from the request to its files and its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffuse import tracking
from diffuse.checkpoints.bus_error import watch_cut_files
from diffuse.checkpoints.tensor_reading import check_mapped_files
from diffuse.config import objective
from diffuse.config.request import RequestDraft, draft_requests
from diffuse.device import hardware
from diffuse.device.allocator import program_bytes
from diffuse.device.profile import has_budget
from diffuse.device.step_down import explain_shortage
from diffuse.errors import CheckpointError, RunError
from diffuse.media.files import check_output, file_stem
from diffuse.paths import user_path
from diffuse.record.values import indented_json, json_values, redact
from diffuse.run.callbacks import Callbacks
from diffuse.run.generation import Generation, result_record
from diffuse.run.open import release_others
from diffuse.run.prepare import PreparedRun, prepare
from diffuse.run.start import StartedRun, start_run
from diffuse.sampling.results import PipelineOutput, Step
from diffuse.schema import Compile, TrackingConfig
from diffuse.terminal import Progress, counted, print_error, print_path
from diffuse.tracking.tags import PIXELS_TAG

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse.sampling.prompt_embeddings import PromptEmbeddings


PREDICTED_FROM_S = 60.0  # of making pictures: the first prediction takes a second or two


@dataclass(frozen=True)
class BatchNeighbors:
    """Seeds of other images to batch with a run's, so that its bits match the recorded batch."""

    before: Sequence[int]
    after: Sequence[int]


def run(cfg: DictConfig, *, drafts: Sequence[RequestDraft] | None = None, overrides: Sequence[str] = ()) -> list[Path]:
    """Makes, saves and records what `cfg` asks for, and prints each saved path on standard output.

    A `prompt_file` makes one run of each prompt. All of them are checked before the first starts.

    Args:
        drafts: the drafts of `cfg`, where they have been made already.
        overrides: the overrides that `cfg` was composed with.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or a run failed, and is recorded as failed.
    """
    drafts = draft_requests(cfg) if drafts is None else drafts
    generations = generate(cfg, drafts, overrides=overrides, save=True, callbacks=Callbacks(on_saved=print_path))
    if error := print_error():
        raise RunError(f"standard output cannot be written: {error.strerror}; the pictures are in {cfg.output.dir}")
    return [path for generation in generations for path in generation.paths]


def generate(
    cfg: DictConfig,
    drafts: Sequence[RequestDraft],
    *,
    overrides: Sequence[str] = (),
    latents: Tensor | Mapping[str, Tensor] | None = None,
    embeddings: PromptEmbeddings | None = None,
    save: bool = False,
    neighbors: BatchNeighbors | None = None,
    step_downs: Sequence[Mapping[str, Any]] | None = None,
    callbacks: Callbacks | None = None,
) -> list[Generation]:
    """Makes what `drafts`, those of `cfg`, ask for. All of them are checked before the first starts.

    Args:
        overrides: the overrides that `cfg` was composed with.
        latents: initial noise `[N, ...]` of unit variance, instead of that which the seeds give; or by name.
        embeddings: of prompts, in place of the prompts.
        save: whether files are written and the run is recorded in the tracking store.
        neighbors: images to be made in one batch with those of each run, and not kept.
        step_downs: those of a recorded run, which is made again.
        callbacks: none, and no messages, where it is None.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or a run failed, and is recorded as failed.
    """
    callbacks = callbacks or Callbacks(messages=False)
    if save:
        check_output(user_path(cfg.output.dir, "output.dir"))
        for draft in drafts:
            file_stem(draft.prompt, draft.seed, cfg.output.name)
    runs = explain_shortage(
        "the run was prepared", lambda: [prepare(cfg, draft, latents, embeddings=embeddings) for draft in drafts]
    )
    tracker = tracking.open_tracker(cfg.tracking if save else TrackingConfig(name="none"))
    try:
        return [_run(prepared, tracker, overrides, save, callbacks, neighbors, step_downs) for prepared in runs]
    finally:
        for warning in tracker.close():
            callbacks.say(f"warning: {warning}")


def _run(
    prepared: PreparedRun,
    tracker: tracking.Tracker,
    overrides: Sequence[str],
    save: bool,
    callbacks: Callbacks,
    neighbors: BatchNeighbors | None,
    step_downs: Sequence[Mapping[str, Any]] | None,
) -> Generation:
    """Runs a request, from point 4 on of the seven in diffuse/docs/architecture.md.

    The configuration is composed and checked, and the pipeline open.
    """
    request = prepared.request

    # 4. The tracked run starts, so that a failure is recorded too.
    started = start_run(prepared, tracker, overrides)
    for line in prepared.output_notes if save else []:
        callbacks.say(line)
    for note in prepared.notes:
        callbacks.say(note)
    if prepared.opened.choice is not None:
        callbacks.say(prepared.opened.choice.line())
    for note in [] if prepared.inputs is None else prepared.inputs.notes:
        callbacks.say(note)
    if prepared.inputs is not None:
        size = f"{request.width} x {request.height}"
        first = request.input_image or request.input_video or request.last_image
        callbacks.say(f"{first}: {_steps(prepared)} are run, at {size}")

    with started.recording_errors():
        # 5. The pipeline encodes, denoises and decodes.
        seeds_before = [] if neighbors is None else neighbors.before
        seeds_after = [] if neighbors is None else neighbors.after
        batch = [*map(prepared.with_seed, seeds_before), prepared, *map(prepared.with_seed, seeds_after)]
        if step_downs is not None:
            prepared.opened.pipeline.memory.step_downs.replay(step_downs)
        with Progress(request.prompt, visible=callbacks.messages) as progress:

            def fail(error: CheckpointError) -> None:
                progress.close()
                started.fail(error)

            output = compute(batch, [progress.on_step, callbacks.on_step], fail)[len(seeds_before)]
        for warning in output.warnings:
            callbacks.say(f"warning: {warning}")

        # 6. and 7. Its output becomes a generation, files and a record.
        generation = finish(started, output, save=save, on_saved=callbacks.on_saved)

    callbacks.say(_summary(prepared, generation))
    return generation


def compute(
    runs: Sequence[PreparedRun],
    on_step: Sequence[Callable[[Step], None] | None] = (),
    on_cut: Callable[[CheckpointError], object] | None = None,
) -> list[PipelineOutput]:
    """Calls the pipeline once for `runs` that differ in their seeds alone. Returns the output of each.

    Args:
        on_step: called after each step.
        on_cut: called before the process ends because a weights file was cut while a step read it. In a process that
            is not diffuse's own, and so has not called `report_cut_files`, the system ends it with a bus error.
    """
    first = runs[0]
    sources = [part for each in first.opened.checkpoints for part in (each, *each.parts.values())]
    folders = {part.path("model_index.json").parent for part in sources}

    def call_all(step: Step) -> None:
        check_mapped_files(folders)
        for callback in on_step:
            if callback is not None:
                callback(step)

    check_mapped_files(folders)  # of a pipeline that was used before
    opened = first.opened
    hardware.apply(opened.hardware, keeps_memory=opened.profile.host_gib is None)
    if first.opened.choice is not None:
        release_others(first.opened.pipeline)
    program_bytes()  # before weights are read
    first.use()
    inputs = {} if first.inputs is None else first.inputs.arrays(first.request)
    seeds = [seed for each in runs for seed in each.request.seeds]
    make = partial(
        first.opened.pipeline,
        first.request,
        first.samplers,
        image=inputs.get("image"),
        mask=inputs.get("mask"),
        last_image=inputs.get("last_image"),
        latents=first.latents,
        embeddings=first.embeddings,
        seeds=seeds,
        on_step=call_all,
    )
    hw = first.opened.hardware
    holds_lock = hw.device == "cpu" and hw.compile is not Compile.none  # compiled code keeps the interpreter lock
    with nullcontext() if holds_lock else watch_cut_files(check_mapped_files, on_cut):
        output = explain_shortage("the pictures were made", make)
    return replace(output, batch_seeds=tuple(seeds)).split([each.request.num_images for each in runs])


def finish(
    started: StartedRun, output: PipelineOutput, *, save: bool, on_saved: Callable[[Path], None] | None = None
) -> Generation:
    """Makes the generation of a run from its part of the pipeline's output; with `save`, also its files and record."""
    return explain_shortage("the pictures were saved", lambda: _finish(started, output, save=save, on_saved=on_saved))


def _finish(
    started: StartedRun, output: PipelineOutput, *, save: bool, on_saved: Callable[[Path], None] | None
) -> Generation:
    prepared, tracked = started.prepared, started.tracked
    settings = prepared.cfg.output
    generation = Generation(
        output.frames,
        {name: latents.clone() for name, latents in output.latents.items()},  # usable outside torch's inference mode
        output.timings,
        list(output.step_seconds),
        output.memory,
        list(output.warnings),
        result_record(_with_text_backend(started), output, _memory(prepared, output)),
        quality=objective.reference_quality(output.frames, prepared.reference),
        fps=output.fps,
        sound=output.sound,
        sample_rate=output.sample_rate,
        sampler_settings=prepared.sampler_settings,
    )
    folder = user_path(settings.dir, "output.dir") if save else Path()
    for index in range(len(generation.frames) if save else 0):
        path = generation.save_one(index, folder, settings.name, settings.format, settings.quality)
        generation.paths.append(path)
        if on_saved is not None:
            on_saved(path)
        tracked.log_media(path, index)
    tracked.log_text("record.json", indented_json(generation.record))
    digests = [image["pixels_sha256"] for image in generation.record["images"]]
    tracked.set_tags({PIXELS_TAG: " ".join(digests)})
    tracked.log_steps(generation.step_seconds)
    tracked.log_metrics(generation.metrics)
    tracked.finish(None)
    return generation


def _with_text_backend(started: StartedRun) -> dict[str, Any]:
    """Returns the record with what is known of the text backend since it has given the embeddings."""
    prepared = started.prepared
    text = prepared.opened.pipeline.text_record(prepared.request)
    return started.record if text is None else {**started.record, "text_backend": redact(json_values(text))}


def _memory(prepared: PreparedRun, output: PipelineOutput) -> dict[str, Any] | None:
    """Returns the predicted and the measured peaks, where the prediction costs little beside the pictures."""
    opened = prepared.opened
    if not (has_budget(prepared.cfg) or opened.choice is not None or output.timings["total_s"] >= PREDICTED_FROM_S):
        return None
    from diffuse.plan.recorded import memory_beside_prediction

    count = len(output.batch_seeds) or len(output.frames)
    what = prepared.cfg, prepared.request, opened.profile, opened.hardware, opened.checkpoints
    return memory_beside_prediction(*what, output.memory, count)


def _steps(prepared: PreparedRun) -> str:
    request = prepared.request
    steps = counted(request.num_inference_steps, "step")
    if prepared.inputs is None or request.strength is None:
        return steps
    return f"{request.num_inference_steps - request.skipped_steps} of {steps} (strength {request.strength:g})"


def _summary(prepared: PreparedRun, generation: Generation) -> str:
    request, opened = prepared.request, prepared.opened
    count = generation.count
    last = request.seed + request.num_images - 1
    seeds = f"seed {last}" if request.num_images == 1 else f"seeds {request.seed} to {last}"
    settings = f"{seeds}, {request.width} x {request.height}, {_steps(prepared)}"
    device = f"{opened.profile.name} on {opened.hardware.name or opened.hardware.device}"
    return f"{count} in {generation.timings['total_s']:.1f} s: {settings}, {device}"
