"""A worker's part of a sweep: it gets the sweep's context once, and then one task after the other.

The process lives on between tasks, and keeps its models and its tracking store.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import pickle
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.bus_error import report_cut_files
from diffuse.config.own import own_config_of, use_own_config
from diffuse.config.tracking_settings import TRACKING_VARIABLES
from diffuse.errors import DiffuseError, RunError
from diffuse.sweep.claim import watch_claim
from diffuse.sweep.composer import JobComposer
from diffuse.sweep.folder import Sweep
from diffuse.sweep.interrupt import ignore_stop_signals
from diffuse.sweep.job import Job, JobStatus
from diffuse.sweep.runner import JobRunner
from diffuse.terminal import say


@dataclass(frozen=True)
class SweepContext:
    """The part that all tasks of a sweep have in common."""

    sweep: Sweep
    claim: str  # of the command that the workers work for
    loader: Any  # Hydra's config loader, which composes the jobs
    config: DictConfig  # the sweep's
    directory: str  # from which relative paths start
    threads: int  # for torch, unless the configuration or OMP_NUM_THREADS says otherwise
    environment: Mapping[str, str] = field(default_factory=dict)  # of the command: where runs are recorded


@dataclass(frozen=True)
class Task:
    """Jobs that one worker makes, as many of them at once as fit."""

    numbers: tuple[int, ...]
    jobs: tuple[Sequence[str], ...]  # each as its overrides
    may_exist: bool = False  # a worker that died may have recorded some of them


@dataclass(frozen=True)
class JobResult:
    """How one job ended, for another process."""

    status: JobStatus
    error: Exception | None = None
    paths: list[Path] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """The results of a task's jobs, and the warnings of the worker."""

    jobs: list[JobResult]
    warnings: list[str]


@dataclass
class _State:
    """The state of this process."""

    runners: dict[str, JobRunner] = field(default_factory=dict)  # by the sweep's identity
    warnings: dict[str, None] = field(default_factory=dict)


_state = _State()


class _WarningHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _state.warnings.setdefault(" ".join(record.getMessage().split()))


def run_task(context: SweepContext, task: Task) -> TaskResult:
    """Runs the jobs of a task in this process. Raises nothing: failures and a stop are results of the jobs."""
    jobs = [Job(*job, may_exist=task.may_exist) for job in zip(task.numbers, task.jobs, strict=True)]
    try:
        runner = _runner(context)
        own = use_own_config(own_config_of(context.config.hydra))
        with own, watch_claim(context.sweep.folder, context.claim, runner.interruption):
            results = [job_result(job) for job in runner.run(jobs)]
    except KeyboardInterrupt:
        results = [job_result(job) if job.status else JobResult(JobStatus.LEFT) for job in jobs]
    except Exception as error:  # the worker's own, before any job
        results = [JobResult(JobStatus.FAILED, picklable_error(error))] * len(task.jobs)
    return TaskResult(results, _take_warnings())


def leave_sweep(context: SweepContext) -> list[str]:
    """Ends the worker's part in a sweep: waits until everything is recorded. Returns warnings."""
    runner = _state.runners.pop(context.sweep.identity, None)
    for warning in [] if runner is None else runner.close():
        _state.warnings.setdefault(warning)
    return _take_warnings()


def _runner(context: SweepContext) -> JobRunner:
    if context.sweep.identity not in _state.runners:
        ignore_stop_signals()  # the sweep's command handles them, and stops the workers
        if not os.environ.get("PYTHONFAULTHANDLER"):  # then it is the workers' library that has enabled it
            faulthandler.disable()
        report_cut_files(lambda error: say(str(error)))
        try:
            os.chdir(context.directory)
        except OSError as error:
            where = f"{context.directory} on {os.uname().nodename}"
            raise RunError(f"{where}: {error.strerror}; every worker needs the folder of the sweep") from error
        for name in set(TRACKING_VARIABLES) - set(context.environment):  # of this machine, or of an earlier sweep
            os.environ.pop(name, None)
        os.environ.update(context.environment)
        os.environ.setdefault("OMP_NUM_THREADS", str(context.threads))  # torch, which reads it, is imported later
        log = logging.getLogger("diffuse")
        log.handlers, log.propagate = [_WarningHandler(logging.WARNING)], False
        composer = JobComposer(context.loader)

        def compose(overrides: Sequence[str]) -> DictConfig:
            return composer.load_sweep_config(context.config, overrides)

        _state.runners[context.sweep.identity] = JobRunner(context.sweep, context.config.tracking, compose)
    return _state.runners[context.sweep.identity]


def job_result(job: Job) -> JobResult:
    """Returns the result of a job that has ended."""
    assert job.status is not None
    return JobResult(job.status, None if job.error is None else picklable_error(job.error), job.paths, job.metrics)


def picklable_error(error: Exception) -> Exception:
    """Returns the error with its traceback as a note, which pickling would lose; a RunError where it has no pickle."""
    if not isinstance(error, DiffuseError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


def _take_warnings() -> list[str]:
    """Returns the warnings since the last call."""
    for runner in _state.runners.values():
        _state.warnings |= runner.callbacks.warnings | dict.fromkeys(runner.callbacks.notes.values())
        runner.callbacks.warnings.clear()
    warnings = list(_state.warnings)
    _state.warnings.clear()
    return warnings
