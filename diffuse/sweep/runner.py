"""Runs the jobs of a sweep in one process: those that are missing, in an order in which least has to be loaded again,
and as many together as fit.

It is the only file of the room that calls `run`. While one batch is computed, threads save and record the one before.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffuse import tracking
from diffuse.config import objective
from diffuse.config.compose import ConfigValues, compose_with_hydra, resolve_config
from diffuse.config.lora import LORA
from diffuse.config.mistakes import explain_errors
from diffuse.config.quoting import unquote_overrides
from diffuse.config.request import RequestDraft, draft_requests
from diffuse.errors import OutOfMemory, RunError, first_line
from diffuse.media.files import file_stem
from diffuse.media.formats import is_still, is_video
from diffuse.media.images import InputImageCache, read_image
from diffuse.media.video import Video
from diffuse.schema import PROMPT_FIELDS, TrackingConfig
from diffuse.sweep import job_folder
from diffuse.sweep.callbacks import SweepCallbacks
from diffuse.sweep.folder import Sweep, sweep_as_json
from diffuse.sweep.interrupt import Interruption
from diffuse.sweep.job import Job, JobStatus, sort_jobs
from diffuse.sweep.job_folder import json_digest, sha256_values
from diffuse.sweep.saver import Saver
from diffuse.tracking.tags import SWEEP_KIND, SWEEP_TAG, run_name, summary_id, user_tags

if TYPE_CHECKING:
    from diffuse.run.open import OpenPipeline
    from diffuse.run.start import StartedRun
    from diffuse.sampling.results import PipelineOutput, Step

_MODEL_GROUPS = (
    "model",
    "refiner",
    "hardware",
    "memory_profile",
    "text_backend",
)  # a change of these loads models again
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class JobRunner:
    """Runs the jobs of one sweep. A sweeper may call `run` several times, with more jobs each time.

    Attributes:
        dispatch: runs the missing jobs: in this process, unless a launcher has workers.
        on_close: called by `close`; each returns warnings.
    """

    def __init__(
        self,
        sweep: Sweep,
        tracking_config: TrackingConfig,
        compose: Callable[[Sequence[str]], DictConfig] | None = None,
        interruption: Interruption | None = None,
        callbacks: SweepCallbacks | None = None,
    ) -> None:
        self.sweep = sweep
        self.tracking_config = tracking_config
        self.compose = compose or compose_with_hydra  # a launcher sets its own
        self.interruption = interruption or Interruption()
        self.callbacks = callbacks or SweepCallbacks()
        self.disk_error: Exception | None = None  # the disk is full: the rest is left
        self.dispatch: Callable[[JobRunner, Sequence[Job]], None] = JobRunner.run_batches
        self.on_close: list[Callable[[], list[str]]] = []
        self._jobs: dict[str, Job] = {}  # by key
        self._folders = job_folder.JobFolders(sweep.folder, sweep.axes)
        self._pipelines: dict[str, OpenPipeline] = {}  # by the first level
        self._batch_limits: dict[str, int] = {}  # by the first level, where a batch of the estimated size failed
        self._reader = InputImageCache()  # of the pictures that jobs start from
        self._tracker: tracking.Tracker | None = None
        self._saver = Saver()
        self._lock = threading.Lock()

    def run_overrides(self, overrides: Sequence[Sequence[str]], first: int = 0) -> list[Job]:
        """Runs the jobs with these overrides; see `run`. `first` is the number of the first of them."""
        return self.run([Job(first + index, lines) for index, lines in enumerate(overrides)])

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Runs those of `jobs` that are missing. Returns the jobs, and for a duplicate the job that it repeats."""
        self.callbacks.on_jobs(jobs)
        for job in jobs:
            self.interruption.check()
            self.look_up(job)
        missing = sort_jobs([job for job in jobs if not job.status])
        if missing:
            tracking.start_worker(self.tracking_config)
        try:
            if missing:
                self.dispatch(self, missing)
        finally:
            self._saver.wait()
        return [self._jobs[job.key] if job.status is JobStatus.DUPLICATE else job for job in jobs]

    def log_summary(self, metrics: Mapping[str, float], report: Sequence[Path]) -> None:
        """Records the sweep in a run of its own, with the files of its report, if any."""
        sweep = self.sweep
        tracker = self._open_tracker()
        files = {"sweep.json": json.dumps(sweep_as_json(sweep), indent=2)}
        params = {"overrides": sweep.overrides, "axes": sweep.axes, "folder": str(sweep.folder)}
        tags = {**user_tags(self.tracking_config), **SWEEP_KIND, SWEEP_TAG: sweep.identity}
        name = run_name(self.tracking_config, sweep.name, in_sweep=True)
        run_id = summary_id(sweep.identity)
        summary = tracker.start(name, params, tags, files, id=run_id, again=sweep.may_exist)
        summary.log_metrics(metrics)
        if report:
            summary.log_files(report[0].parent.name, report)
            for step, sheet in enumerate(path for path in report if path.match("sheet*.png")):
                summary.log_sheet(sheet, step)
        summary.finish()

    def close(self) -> list[str]:
        """Waits until everything is saved and recorded. Returns warnings."""
        warnings: list[str] = []
        with ExitStack() as stack:  # each is closed, whatever happens to those before
            if self._tracker is not None:
                stack.callback(lambda tracker: warnings.extend(tracker.close()), self._tracker)
            stack.callback(lambda: warnings.extend(self._close_saver()))
            for close in reversed(self.on_close):
                stack.callback(lambda close: warnings.extend(close()), close)
        return warnings

    def _close_saver(self) -> list[str]:
        self._saver.wait()
        self._saver.close()
        return [f"{type(error).__name__}: {first_line(error)}" for error in self._saver.errors]

    def end_job(self, job: Job, status: JobStatus, error: Exception | None = None) -> None:
        """Sets the status of a job, which is then final."""
        with self._lock:
            job.status, job.error = status, error
            if isinstance(error, RunError) and getattr(error.__cause__, "errno", None) in _DISK_FULL:
                self.disk_error = error
            self.callbacks.on_job_end(job)

    def look_up(self, job: Job) -> None:
        """Finds out which job it is. Ends it if the request is wrong, or if it exists or is a duplicate."""
        try:
            self._look_up(job)
        except Exception as error:
            self.end_job(job, JobStatus.FAILED, error)

    def _look_up(self, job: Job) -> None:
        with explain_errors():
            cfg = self.compose(job.overrides)
            cfg.output.dir = str(self.sweep.folder)  # the job's own folder is known below, and not in its identity
            resolved = resolve_config(cfg)
        values = job_folder.job_identity(resolved)
        job.key = json_digest(values)
        job.folder = self._folders.path(unquote_overrides(job.overrides), job.key)
        if self._jobs.setdefault(job.key, job) is not job:
            self.end_job(job, JobStatus.DUPLICATE)
            return
        cfg, draft = self.compose_job(job, resolved)
        groups = _MODEL_GROUPS, (LORA,), PROMPT_FIELDS
        models, lora, texts = ({name: values.pop(name, None) for name in names} for names in groups)
        del values["seed"]
        values["objective"] = resolved.objective  # not in the identity, but in the record that a batch shares
        job.levels = tuple(json_digest(level) for level in (models, lora, texts, values))
        finished = job_folder.read_finished_job(job.folder, job.key)
        if finished is None:
            return
        content, paths = finished
        from diffuse.run.prepare import locate_weights

        inputs = {} if draft.inputs is None else draft.inputs.as_record(draft.request((0, 0)))
        sources = {"weights": locate_weights(cfg), "inputs": inputs}
        if all(sha256_values(part) == sha256_values(content["record"][name]) for name, part in sources.items()):
            job.paths = paths
            job.metrics = content.get("metrics", {}) | _quality(paths, draft)
            self.end_job(job, JobStatus.EXISTING)

    def compose_job(self, job: Job, resolved: ConfigValues | None = None) -> tuple[DictConfig, RequestDraft]:
        """Returns the job's configuration, and its request as far as no checkpoint is needed to know it.

        Args:
            resolved: the plain values of the configuration, where the caller has them.
        """
        cfg = self.compose(job.overrides)
        cfg.output.dir = str(job.folder)
        if job.draft is not None:
            return cfg, job.draft
        (draft,) = draft_requests(cfg, reader=self._reader, values=resolved)
        file_stem(draft.prompt, draft.seed, cfg.output.name)
        if draft.inputs is None:  # the pictures of all jobs would take too much memory
            job.draft = draft
        return cfg, draft

    def _open_tracker(self) -> tracking.Tracker:
        self._tracker = self._tracker or tracking.open_tracker(self.tracking_config)
        return self._tracker

    def run_batches(self, jobs: Sequence[Job]) -> None:
        """Makes sorted jobs in this process, in batches."""
        for batch in self._batches(jobs):
            self.interruption.check()
            if self.disk_error:
                for job in batch:
                    self.end_job(job, JobStatus.LEFT)
            else:
                self._run_batch(batch)

    def _batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Yields groups of sorted jobs that differ in their seeds alone, as many at once as fit."""
        previous: str | None = None
        for levels, group in groupby(jobs, key=lambda job: job.levels):
            if levels[0] != previous:
                # Pipelines of earlier calls go too, unless the sweeper chooses jobs one after the other: it may come
                # back to them.
                for other in [level for level in self._pipelines if level != levels[0]]:
                    if other == previous or self.sweep.jobs is not None:
                        self._forget_pipeline(other)
                previous = levels[0]
            rest = list(group)
            while rest:
                size = self._batch_size(rest[0])
                yield rest[:size]
                rest = rest[size:]

    def _batch_size(self, job: Job) -> int:
        """Returns how many jobs like this one can be made together."""
        try:
            cfg, draft = self.compose_job(job)
            pipeline = self._pipeline(job, cfg, draft).pipeline
            request = draft.request(pipeline.default_size())
            fit = pipeline.batch_size(request) // request.num_images
            return max(min(fit, self._batch_limits.get(job.levels[0], fit)), 1)
        except Exception:
            return 1  # the same error comes up again when the job is started

    def _pipeline(self, job: Job, cfg: DictConfig, draft: RequestDraft) -> OpenPipeline:
        from diffuse.run.open import open_pipeline

        level = job.levels[0]
        known = self._pipelines.get(level)
        if known is None or known.choice is not None:  # its levers depend on the request
            known = self._pipelines[level] = open_pipeline(cfg, draft)
        return known

    def _forget_pipeline(self, level: str) -> None:
        from diffuse.run.open import close_pipeline

        close_pipeline(self._pipelines.pop(level).pipeline)

    def _run_batch(self, batch: Sequence[Job]) -> None:
        """Starts a tracked run for each job, and makes them together."""
        from diffuse.run.prepare import prepare
        from diffuse.run.start import SweepJobTags, start_run, start_similar_run

        started: list[tuple[Job, StartedRun]] = []
        for job in batch:
            try:
                cfg, draft = self.compose_job(job)
                sweep = self.sweep
                run_id = job_folder.next_run_id(job.folder, job.key, sweep.identity)
                may_exist = sweep.may_exist or job.may_exist
                tags = SweepJobTags(sweep.identity, job.key, job.run_name(sweep.axes), run_id, may_exist)
                arguments = self._open_tracker(), unquote_overrides(job.overrides), tags
                if started:
                    one = start_similar_run(started[0][1], cfg, draft, *arguments)
                else:
                    one = start_run(prepare(cfg, draft, opened=self._pipeline(job, cfg, draft)), *arguments)
                    if (choice := one.prepared.opened.choice) is not None:
                        self.callbacks.notes.setdefault(choice.levers, choice.line())
                for note in one.prepared.output_notes:
                    self.callbacks.warnings.setdefault(note)
                for note in one.prepared.notes:
                    self.callbacks.warnings.setdefault(note)
                started.append((job, one))
            except Exception as error:
                self.end_job(job, JobStatus.FAILED, error)
        if started:
            self.callbacks.on_batch([job for job, _ in started], started[0][1].prepared.request.prompt)
            self._make(started)

    def _make(self, started: Sequence[tuple[Job, StartedRun]]) -> None:
        """Makes the pictures of a batch, and hands them to the saver. A batch that fails is made in smaller parts."""
        from diffuse.run.run import compute

        def fail(error: Exception) -> None:
            for _, one in started:
                one.fail(error)

        on_step: list[Callable[[Step], None] | None] = [self.callbacks.on_step, self.interruption.check]
        try:
            outputs = compute([one.prepared for _, one in started], on_step, fail)
        except Exception as error:
            if len(started) == 1:
                self._fail(*started[0], error)
                return
            # Either one job spoils it for the others, or the device has not enough memory for so many.
            level, half = started[0][0].levels[0], -(-len(started) // 2)
            if isinstance(error, OutOfMemory):
                self._batch_limits[level] = half
            while started:
                size = min(half, self._batch_limits.get(level, half))
                self._make(started[:size])
                started = started[size:]
            return
        except BaseException as error:
            for _, one in started:
                one.fail(error)
            raise
        for (job, one), output in zip(started, outputs, strict=True):
            for warning in output.warnings:
                self.callbacks.warnings.setdefault(warning)
            self._saver.submit(partial(self._save, job, one, output), output.frames.nbytes)

    def _save(self, job: Job, started: StartedRun, output: PipelineOutput) -> None:
        from diffuse.run.run import finish

        try:
            job_folder.clear_job_folder(job.folder)
            generation = finish(started, output, save=True)
        except Exception as error:
            self._fail(job, started, error)
            return
        paths = generation.paths
        digests = [image["pixels_sha256"] for image in generation.record["images"]]
        try:
            files = [job_folder.media_entry(*each) for each in zip(paths, digests, strict=True)]
            self._write(job, generation.record, started, media=files, metrics=generation.metrics)
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            failure = RunError(f"{job.folder / job_folder.JOB_FILE} could not be written: {reason}")
            failure.__cause__ = error
            self.end_job(job, JobStatus.FAILED, failure)
            return
        job.paths, job.metrics = paths, generation.metrics
        self.end_job(job, JobStatus.MADE)

    def _fail(self, job: Job, started: StartedRun, error: Exception) -> None:
        started.fail(error)
        with suppress(OSError):  # the disk that failed the job, most likely; without job.json it is made again
            self._write(job, started.record, started, error=f"{type(error).__name__}: {error}")
        self.end_job(job, JobStatus.FAILED, error)

    def _write(self, job: Job, record: dict[str, Any], started: StartedRun, **rest: Any) -> None:
        job_folder.write_job(
            job.folder,
            key=job.key,
            sweep=self.sweep.identity,
            overrides=record["overrides"],
            record=record,
            run_id=started.tracked.id,
            **rest,
        )


def _quality(paths: Sequence[Path], draft: RequestDraft) -> dict[str, float]:
    """Returns the quality metrics of existing results against the current reference, which may have changed."""
    reference = draft.reference
    if reference is None or not all(is_video(path) or is_still(path) for path in paths):  # sound alone
        return {}
    results = [Video.open(path) if is_video(path) else read_image(str(path)) for path in paths]
    for result in results:
        objective.check_reference(reference, *result.size, is_film=isinstance(result, Video))
    frames = [result.each_frame() if isinstance(result, Video) else [result.pixels] for result in results]
    return objective.reference_quality(frames, reference)
