"""Makes the jobs of a sweep: those that are missing, in the order in which least has to change, as many at once as fit.

While one batch is computed, the one before is saved and recorded by threads of their own.
"""

from __future__ import annotations

import errno
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from diffuse import sweep, tracking
from diffuse.config import compose as configuration
from diffuse.config import objective
from diffuse.config import request as validation
from diffuse.errors import RunError
from diffuse.media import files as media
from diffuse.media.images import Reader, read_picture
from diffuse.sampling.results import Step
from diffuse.schema import MOST_TOGETHER, ImageFormat, TrackingConfig
from diffuse.sweep import Sweep, job
from diffuse.sweep.interrupt import Interruption

if TYPE_CHECKING:
    from diffuse.run.open import OpenPipeline
    from diffuse.run.start import StartedRun
    from diffuse.sampling.results import PipelineOutput

_COSTLY = ("model", "refiner", "hardware", "memory_profile")  # to change them is to load again
_TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")  # which are encoded
_NAME_CHARACTERS = 50  # of a run
_WAITING = 2 * MOST_TOGETHER  # jobs that are made and not yet saved
_SAVERS = 3  # threads, each of which waits three times for the disk for a job
_FULL = (errno.ENOSPC, errno.EDQUOT)

MADE, THERE, FAILED, LEFT, DOUBLE = "made", "there", "failed", "left", "double"


@dataclass(eq=False)
class Job:
    """One of the sweep's jobs, and what became of it."""

    number: int  # in the order of the command line
    lines: Sequence[str]  # its overrides, in Hydra's grammar
    again: bool = False  # it may have been begun before, by a worker that died
    key: str = ""
    folder: Path = Path()
    draft: validation.Draft | None = None
    levels: tuple[str, ...] = ()  # what it has in common with others, the costliest first
    status: str = ""
    error: Exception | None = None
    paths: list[Path] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def said(self, axes: Sequence[str]) -> str:
        """What of its overrides is its own, for the user."""
        typed = configuration.typed(self.lines)
        return " ".join(line for line in typed if line.partition("=")[0] in axes) or f"job {self.number}"

    def name(self, axes: Sequence[str]) -> str:
        """What its run is called. The tracking store's page makes a picture's place as wide as that."""
        said = " ".join(self.said(axes).replace("num_inference_steps=", "steps=").split())
        return said if len(said) <= _NAME_CHARACTERS else f"{said[: _NAME_CHARACTERS - 3]}..."


class Told:
    """What the outside is told while a sweep goes on."""

    def __init__(self) -> None:
        self.warnings: dict[str, None] = {}  # once each, whatever the number of jobs

    def planned(self, jobs: Sequence[Job]) -> None:
        """There are these jobs, in this order."""

    def begun(self, jobs: Sequence[Job], title: str) -> None:
        """These are made now."""

    def step(self, step: Step) -> None:
        """A step of theirs has ended."""

    def ended(self, job: Job) -> None:
        """Its status will not change any more. Called from several threads, one at a time."""


class Jobs:
    """The jobs of one sweep that are made in this process. A sweeper may come back with more of them."""

    def __init__(
        self,
        of: Sweep,
        tracked: TrackingConfig,
        compose: Callable[[Sequence[str]], DictConfig] | None = None,
        interruption: Interruption | None = None,
        told: Told | None = None,
    ) -> None:
        self.sweep = of
        self.tracked = tracked
        self.compose = compose or configuration.composed  # whatever a launcher composes with
        self.interruption = interruption or Interruption()
        self.told = told or Told()
        self.all: dict[str, Job] = {}  # by their key
        self.full: Exception | None = None  # the disk is, and nothing more is tried
        self.elsewhere: Callable[[Jobs, Sequence[Job]], None] | None = None  # makes jobs, if not this process
        self.on_close: list[Callable[[], list[str]]] = []
        self._folders = job.Folders(of.folder, of.axes)
        self._opened: dict[str, OpenPipeline] = {}  # by the costly part of the configuration
        self._most: dict[str, int] = {}  # by it, how many jobs were too many at once
        self._reader = Reader()  # of the pictures that jobs start from
        self._tracker: tracking.Tracker | None = None
        self._saver = _Saver()
        self._lock = threading.Lock()

    def make(self, overrides: Sequence[Sequence[str]], first: int = 0) -> list[Job]:
        """Makes what is missing of the jobs with these overrides; `first` is the number of the first of them."""
        return self.do([Job(first + place, lines) for place, lines in enumerate(overrides)])

    def do(self, jobs: Sequence[Job]) -> list[Job]:
        """Makes what is missing of `jobs`. Gives them back, or for one that is the same as an earlier one, that."""
        self.told.planned(jobs)
        for each in jobs:
            self.interruption.check()
            self.look(each)
        missing = self._ordered([each for each in jobs if not each.status])
        if missing:
            tracking.prepare(self.tracked)
        if missing and self.elsewhere is not None:
            self.elsewhere(self, missing)
            missing = []
        try:
            for batch in self._batches(missing):
                self.interruption.check()
                if self.full:
                    for each in batch:
                        self.end(each, LEFT)
                else:
                    self._begin(batch)
        finally:
            self._saver.wait()
        return [self.all[each.key] if each.status == DOUBLE else each for each in jobs]

    def sum_up(self, metrics: Mapping[str, float], report: Sequence[Path]) -> None:
        """Records the sweep itself, in a run beside those of its jobs, with the files of its report, if any."""
        of = self.sweep
        tracker = self._tracker = self._tracker or tracking.open_tracker(self.tracked)
        about = {"sweep.json": json.dumps(sweep.as_json(of), indent=2)}
        params = {"overrides": of.overrides, "axes": of.axes, "folder": str(of.folder)}
        tags = {**tracking.SWEEP_KIND, "diffuse.sweep": of.identity}
        summary = tracker.start(of.name, params, tags, about, id=tracking.summary_id(of.identity), again=of.again)
        summary.log_metrics(metrics)
        if report:
            summary.log_files(report[0].parent.name, report)
            for step, sheet in enumerate(path for path in report if path.match("sheet*.png")):
                summary.log_sheet(sheet, step)
        summary.finish()

    def close(self) -> list[str]:
        """Waits until everything is recorded, and says what went wrong with that."""
        warnings = [warning for close in self.on_close for warning in close()]
        self._saver.wait()
        self._saver.close()
        return warnings + ([] if self._tracker is None else self._tracker.close())

    def look(self, each: Job) -> None:
        """Ends the job if it is a wrong request, or there already."""
        try:
            self._look(each)
        except Exception as error:
            self.end(each, FAILED, error)

    def _look(self, each: Job) -> None:
        """Finds out what job it is, whether it is a wrong request, and whether it is there already."""
        with configuration.explained():
            cfg = self.compose(each.lines)
            cfg.output.dir = str(self.sweep.folder)  # where in there is known below, and is nothing of the job's own
            resolved = configuration.resolved(cfg)
        values = job.identity(resolved)
        each.key = job.digest(values)
        each.folder = self._folders.of(configuration.typed(each.lines), each.key)
        if self.all.setdefault(each.key, each) is not each:
            self.end(each, DOUBLE)
            return
        cfg, draft = self._configured(each, resolved)
        costly, texts = ({name: values.pop(name) for name in names} for names in (_COSTLY, _TEXTS))
        del values["seed"]
        values["objective"] = resolved.objective  # no part of the identity, but of the record that a batch shares
        each.levels = tuple(job.digest(level) for level in (costly, texts, values))
        found = job.finished(each.folder, each.key)
        if found is None:
            return
        said, paths = found
        from diffuse.run.prepare import locate_weights

        inputs = {} if draft.inputs is None else draft.inputs.as_record(draft.request((0, 0)))
        now = {"weights": locate_weights(cfg), "inputs": inputs}
        if all(job.digests(part) == job.digests(said["record"][name]) for name, part in now.items()):
            each.paths = paths
            each.metrics = said.get("metrics", {}) | _quality(paths, draft)
            self.end(each, THERE)

    def _configured(
        self, each: Job, resolved: configuration.Values | None = None
    ) -> tuple[DictConfig, validation.Draft]:
        """The job's configuration, which may be known as `resolved`, and its request as far as that can be known
        without a checkpoint."""
        cfg = self.compose(each.lines)
        cfg.output.dir = str(each.folder)
        if each.draft is not None:
            return cfg, each.draft
        (draft,) = validation.drafts(cfg, reader=self._reader, resolved=resolved)
        media.file_stem(draft.prompt, draft.seed, cfg.output.name)
        if draft.inputs is None:  # the pictures of all jobs would take too much memory
            each.draft = draft
        return cfg, draft

    def _ordered(self, jobs: Sequence[Job]) -> list[Job]:
        """In the order in which what is costly to change changes least; otherwise it stays."""
        ranks: list[dict[str, int]] = [{}, {}, {}]
        for each in jobs:
            for rank, level in zip(ranks, each.levels, strict=True):
                rank.setdefault(level, len(rank))

        def place(each: Job) -> tuple[int, ...]:
            return tuple(rank[level] for rank, level in zip(ranks, each.levels, strict=True))

        return sorted(jobs, key=place)

    def _batches(self, ordered: Sequence[Job]) -> Iterator[list[Job]]:
        """Jobs that are alike but for their seeds, as many of them as fit at once."""
        previous: str | None = None
        for levels, group in groupby(ordered, key=lambda each: each.levels):
            if levels[0] != previous:
                # Nor those of tasks before, unless the sweeper finds its jobs as it goes, and may come back to them.
                for other in [costly for costly in self._opened if costly != levels[0]]:
                    if other == previous or self.sweep.jobs is not None:
                        self._forget(other)
                previous = levels[0]
            alike = list(group)
            while alike:
                size = self._batch_size(alike[0])
                yield alike[:size]
                alike = alike[size:]

    def _batch_size(self, each: Job) -> int:
        """How many jobs like this one can be made at once."""
        try:
            cfg, draft = self._configured(each)
            pipeline = self._open(each, cfg).pipeline
            request = draft.request(pipeline.default_size())
            fit = pipeline.memory.together(request.width, request.height) // request.num_images
            return max(min(fit, self._most.get(each.levels[0], fit)), 1)
        except Exception:
            return 1  # what is wrong with it comes up again when it is begun

    def _open(self, each: Job, cfg: DictConfig) -> OpenPipeline:
        from diffuse.run import open as opening

        costly = each.levels[0]
        if costly not in self._opened:
            self._opened[costly] = opening.open_pipeline(cfg)
        return self._opened[costly]

    def _forget(self, costly: str) -> None:
        """Makes room for the next pipeline: no job needs this one any more."""
        from diffuse.run import open as opening

        opening.close_pipeline(self._opened.pop(costly).pipeline)

    def _begin(self, batch: Sequence[Job]) -> None:
        from diffuse.run.prepare import prepare
        from diffuse.run.start import SweepJobTags, start_run, start_similar_run

        begun: list[tuple[Job, StartedRun]] = []
        for each in batch:
            try:
                cfg, draft = self._configured(each)
                tracker = self._tracker = self._tracker or tracking.open_tracker(self.tracked)
                of = self.sweep
                run_id = job.run_id(each.folder, each.key, of.identity)
                place = SweepJobTags(of.identity, each.key, each.name(of.axes), run_id, of.again or each.again)
                about = tracker, configuration.typed(each.lines), place
                if begun:
                    one = start_similar_run(begun[0][1], cfg, draft, *about)
                else:
                    one = start_run(prepare(cfg, draft, opened=self._open(each, cfg)), *about)
                begun.append((each, one))
            except Exception as error:
                self.end(each, FAILED, error)
        if begun:
            self.told.begun([each for each, _ in begun], begun[0][1].prepared.request.prompt)
            self._make(begun)

    def _make(self, begun: Sequence[tuple[Job, StartedRun]]) -> None:
        from diffuse.run.run import compute

        try:
            made = compute([each.prepared for _, each in begun], [self.told.step, self.interruption.check])
        except Exception as error:
            if len(begun) == 1:
                self._failed(*begun[0], error)
                return
            # One has spoiled it for the others, or there is not the memory for so many.
            costly, half = begun[0][0].levels[0], -(-len(begun) // 2)
            if isinstance(error.__cause__, RuntimeError):  # of the device's memory
                self._most[costly] = half
            while begun:
                size = min(half, self._most.get(costly, half))
                self._make(begun[:size])
                begun = begun[size:]
            return
        except BaseException as error:
            for _, run_begun in begun:
                run_begun.fail(error)
            raise
        for (each, run_begun), part in zip(begun, made, strict=True):
            for warning in part.warnings:
                self.told.warnings.setdefault(warning)
            self._saver.put(partial(self._save, each, run_begun, part))

    def _save(self, each: Job, begun: StartedRun, made: PipelineOutput) -> None:
        from diffuse.run.run import finish

        try:
            job.clear(each.folder)
            generation = finish(begun, made, save=True)
        except Exception as error:
            self._failed(each, begun, error)
            return
        paths = generation.paths
        lossless = begun.prepared.cfg.output.format is ImageFormat.png
        digests = [image["pixels_sha256"] for image in generation.record["images"]]
        try:
            if not lossless:
                digests = [media.file_sha256(path) for path in paths]
            files = list(zip(paths, digests, strict=True))
            self._write(each, generation.record, begun, media=files, metrics=generation.metrics)
        except Exception as error:
            self.end(each, FAILED, _unwritten(each, error))
            return
        each.paths, each.metrics = paths, generation.metrics
        self.end(each, MADE)

    def _failed(self, each: Job, begun: StartedRun, error: Exception) -> None:
        begun.fail(error)
        with suppress(OSError):  # as the job itself, most likely; it is missing then, and so is done again
            self._write(each, begun.record, begun, error=f"{type(error).__name__}: {error}")
        self.end(each, FAILED, error)

    def _write(self, each: Job, about: dict[str, Any], begun: StartedRun, **said: Any) -> None:
        job.write(
            each.folder,
            key=each.key,
            sweep=self.sweep.identity,
            overrides=about["overrides"],
            record=about,
            run_id=begun.tracked.id,
            **said,
        )

    def end(self, each: Job, status: str, error: Exception | None = None) -> None:
        """Notes what became of the job."""
        with self._lock:
            each.status, each.error = status, error
            if isinstance(error, RunError) and getattr(error.__cause__, "errno", None) in _FULL:
                self.full = error
            self.told.ended(each)


def _quality(paths: Sequence[Path], draft: validation.Draft) -> dict[str, float]:
    """What pictures that are there are worth beside the reference, which may be another than when they were made."""
    if draft.reference is None:
        return {}
    images = np.stack([read_picture(str(path)).pixels for path in paths])
    objective.check_size(draft.reference, images.shape[2], images.shape[1])
    return objective.quality(images, draft.reference)


def _unwritten(each: Job, error: Exception) -> RunError:
    failed = RunError(f"{each.folder / job.FILE} could not be written: {getattr(error, 'strerror', None) or error}")
    failed.__cause__ = error
    return failed


class _Saver:
    """Threads that do what they are given: most of that is to wait for the disk."""

    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._threads = [
            threading.Thread(target=self._run, name=f"diffuse-saving-{number}", daemon=True)
            for number in range(_SAVERS)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, work: Callable[[], None]) -> None:
        """Waits while there is too much to be done: pictures take memory."""
        self._work.put(work)

    def wait(self) -> None:
        """Until all that they were given is done."""
        self._work.join()

    def close(self) -> None:
        """Threads that still ran while Python ends could end the process with an abort."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            finally:
                self._work.task_done()
