"""What a worker does: it is told of the sweep once, and then given one task after the other. Its process goes on living
between them, and so do the pipelines that it keeps."""

from __future__ import annotations

import io
import os
import pickle
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from diffuse.errors import DiffuseError, RunError
from diffuse.terminal import log_to_stderr


@dataclass(frozen=True)
class Sweep:
    """What all of a sweep's jobs have in common."""

    context: HydraContext
    config: DictConfig
    job: TaskFunction
    singletons: Any  # Hydra's, such as which configuration is being run
    folder: str  # from which relative paths start
    threads: int  # that a worker computes with, unless the configuration or OMP_NUM_THREADS says otherwise


@dataclass(frozen=True)
class Task:
    """Jobs that one worker does together; the first of them has this number."""

    number: int
    jobs: tuple[tuple[str, ...], ...]  # each as its overrides


@dataclass(frozen=True)
class Done:
    """What came of a task: what each job returned or raised, and what they would have printed."""

    returns: list[JobReturn]
    out: str
    err: str


def work(sweep: Sweep, task: Task) -> Done:
    """Does the jobs of a task in this process. A job that fails is a JobReturn that says so."""
    os.environ.setdefault("OMP_NUM_THREADS", str(sweep.threads))  # torch, which listens to it, comes later
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        log_to_stderr()
        try:
            os.chdir(sweep.folder)
            returns = [_sent(job) for job in _launch(sweep, task)]
        except Exception as error:  # none of the jobs': the worker cannot work
            if isinstance(error, FileNotFoundError):
                error = RunError(f"{sweep.folder} is not there on {os.uname().nodename}; workers need the same folders")
            returns = [_sent(_failed(error, overrides)) for overrides in task.jobs]
    return Done(returns, out.getvalue(), err.getvalue())


def _launch(sweep: Sweep, task: Task) -> list[JobReturn]:
    setup_globals()
    Singleton.set_state(sweep.singletons)
    launcher = BasicLauncher()
    launcher.setup(hydra_context=sweep.context, task_function=sweep.job, config=sweep.config)
    return list(launcher.launch([list(job) for job in task.jobs], task.number))


def _failed(error: Exception, overrides: tuple[str, ...]) -> JobReturn:
    return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=error)


def _sent(job: JobReturn) -> JobReturn:
    """What of a job's return goes back: not its configuration, which is large and which the sender has."""
    value = job._return_value
    if isinstance(value, Exception) and not isinstance(value, DiffuseError):
        traceback.print_exception(value)  # which pickling takes away
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        value = RunError(f"{type(value).__name__}: {value}")
    return JobReturn(overrides=job.overrides, status=job.status, _return_value=value)
