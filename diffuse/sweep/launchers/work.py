"""What a worker does: it is told of the sweep once, and then given one task after the other. Its process goes on living
between them, and so do its models and its tracking store."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffuse.errors import DiffuseError, RunError
from diffuse.sweep import Sweep, start
from diffuse.sweep.jobs import FAILED, LEFT, Job, Jobs
from diffuse.sweep.launcher import Composer


@dataclass(frozen=True)
class Told:
    """What all tasks of a sweep have in common."""

    of: Sweep
    start: str  # of the sweep's command, which the workers are to work for
    loader: Any  # Hydra's, which composes the jobs
    config: DictConfig  # the sweep's
    directory: str  # from which relative paths start
    threads: int  # that a worker computes with, unless the configuration or OMP_NUM_THREADS says otherwise


@dataclass(frozen=True)
class Task:
    """Jobs that one worker makes, as many of them at once as fit."""

    numbers: tuple[int, ...]
    jobs: tuple[Sequence[str], ...]  # each as its overrides
    again: bool = False  # a worker that has died may have begun some of them


@dataclass(frozen=True)
class Ended:
    """What became of one job."""

    status: str
    error: Exception | None
    paths: list[Path]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Done:
    """What came of a task."""

    jobs: list[Ended]
    warnings: list[str]


@dataclass
class _Process:
    """What this process keeps."""

    jobs: dict[str, Jobs] = field(default_factory=dict)  # by the sweep's identity
    warnings: dict[str, None] = field(default_factory=dict)


_process = _Process()


class _Kept(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _process.warnings.setdefault(" ".join(record.getMessage().split()))


def work(told: Told, task: Task) -> Done:
    """Makes the jobs of a task in this process. One that fails says so, and so does one that is left because the sweep
    was stopped; nothing is raised."""
    given = [Job(*each, again=task.again) for each in zip(task.numbers, task.jobs, strict=True)]
    try:
        jobs = _jobs(told)
        with start.followed(told.of.folder, told.start, jobs.interruption):
            made = [ended(each) for each in jobs.do(given)]
    except KeyboardInterrupt:
        made = [ended(each) if each.status else Ended(LEFT, None, [], {}) for each in given]
    except Exception as error:  # none of the jobs': the worker cannot work
        made = [Ended(FAILED, sendable(error), [], {})] * len(task.jobs)
    return Done(made, _warnings())


def leave(told: Told) -> list[str]:
    """Ends the worker's part in a sweep: waits until all is recorded. Returns warnings."""
    jobs = _process.jobs.pop(told.of.identity, None)
    for warning in [] if jobs is None else jobs.close():
        _process.warnings.setdefault(warning)
    return _warnings()


def work_and_leave(told: Told, task: Task) -> Done:
    """A worker's only task."""
    done = work(told, task)
    return Done(done.jobs, [*done.warnings, *leave(told)])


def _jobs(told: Told) -> Jobs:
    if told.of.identity not in _process.jobs:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever gave the tasks hears it, and ends the workers
        try:
            os.chdir(told.directory)
        except OSError as error:
            where = f"{told.directory} on {os.uname().nodename}"
            raise RunError(f"{where}: {error.strerror}; every worker needs the folder of the sweep") from error
        os.environ.setdefault("OMP_NUM_THREADS", str(told.threads))  # torch, which listens to it, comes later
        log = logging.getLogger("diffuse")
        log.handlers, log.propagate = [_Kept(logging.WARNING)], False
        composer = Composer(told.loader)

        def composed(lines: Sequence[str]) -> DictConfig:
            return composer.load_sweep_config(told.config, lines)

        _process.jobs[told.of.identity] = Jobs(told.of, told.config.tracking, composed)
    return _process.jobs[told.of.identity]


def ended(job: Job) -> Ended:
    """What became of a job, for another process."""
    return Ended(job.status, None if job.error is None else sendable(job.error), job.paths, job.metrics)


def sendable(error: Exception) -> Exception:
    """The error with its traceback as text, which pickling would lose."""
    if not isinstance(error, DiffuseError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


def _warnings() -> list[str]:
    """Those since this was last asked."""
    for jobs in _process.jobs.values():
        _process.warnings |= jobs.told.warnings
        jobs.told.warnings.clear()
    warnings = list(_process.warnings)
    _process.warnings.clear()
    return warnings
