"""The launcher of a sweep in one process. Every sweeper of Hydra's can use it; the launchers on workers extend it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from hydra.core import utils
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from diffuse.config import objective
from diffuse.errors import ConfigError
from diffuse.sweep.composer import JobComposer
from diffuse.sweep.job import Job
from diffuse.sweep.runner import JobRunner

OPTUNA = "hydra_plugins.hydra_optuna_sweeper"  # of which `hydra/sweeper=optuna` is made
_runners: list[JobRunner] = []  # Hydra makes the launcher, and cannot give it one


@contextmanager
def launching(runner: JobRunner) -> Iterator[None]:
    """Has `runner` run what is launched in the block."""
    _runners.append(runner)
    try:
        yield
    finally:
        _runners.pop()


def current_runner() -> JobRunner | None:
    """Returns the runner of the jobs that are launched now; None in a process that a launcher has started."""
    return _runners[-1] if _runners else None


def require_package(package: str, *, extra: str, user: str) -> None:
    """Raises ConfigError where `package` is not installed, which `user` needs and the extra `extra` brings."""
    with suppress(ModuleNotFoundError):  # the package that it is a part of
        if importlib.util.find_spec(package) is not None:
            return
    name = package.rpartition(".")[2].replace("_", "-")
    raise ConfigError(f"{user}: needs {name}, which is not installed; pip install 'diffuse[{extra}]'")


class SweepLauncher(Launcher):
    """`hydra/launcher=diffuse`: runs the jobs in this process, on models that are loaded once."""

    calls_job_callbacks = False  # whether the job events of `hydra.callbacks` are called
    config: DictConfig
    composer: JobComposer

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Sets the launcher up for Hydra."""
        for callback in () if self.calls_job_callbacks else hydra_context.callbacks.callbacks:
            _check_callback(callback)
        if not self.calls_job_callbacks:
            _check_job_settings(config.hydra)
        self.composer = JobComposer(hydra_context.config_loader)
        # The sweeper uses it too: it composes every job to check it.
        hydra_context.config_loader = cast(Any, self.composer)
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[utils.JobReturn]:
        """Runs the jobs. Returns to the sweeper the objective of each, or the `Job` itself where none is set."""
        runner = current_runner()
        assert runner is not None
        runner.dispatch = self.dispatch
        runner.compose = lambda overrides: self.composer.load_sweep_config(self.config, overrides)
        return [self._job_return(job) for job in runner.run_overrides(job_overrides, initial_job_idx)]

    def dispatch(self, runner: JobRunner, missing: Sequence[Job]) -> None:
        """Runs the missing jobs."""
        runner.run_batches(missing)

    def _job_return(self, job: Job) -> utils.JobReturn:
        returned = utils.JobReturn(overrides=job.overrides, status=utils.JobStatus.COMPLETED)
        if self.config.objective.metric is None:  # failures are reported at the end, and do not stop the others
            returned.return_value = job
        else:
            returned.return_value = (
                objective.objective_value(self.config.objective, job.metrics) if job.metrics else None
            )
        return returned


def _check_callback(callback: Any) -> None:
    """Raises ConfigError for one of `hydra.callbacks` that waits for single jobs: jobs are made together."""
    for name in ("on_job_start", "on_job_end"):
        if getattr(type(callback), name, None) not in (None, getattr(Callback, name)):
            raise ConfigError(
                f"hydra.callbacks: {type(callback).__name__}.{name} is never called, as a sweep makes jobs together; "
                "use on_multirun_start and on_multirun_end, or hydra/launcher=basic, which makes one after the other"
            )


def _check_job_settings(hydra: DictConfig) -> None:
    """Raises ConfigError for what Hydra's own launcher does for each job: jobs are made together."""
    for name, value in (("job.env_set", dict(hydra.job.env_set)), ("output_subdir", hydra.output_subdir)):
        if value:
            raise ConfigError(
                f"hydra.{name}: is not done for each job, as a sweep makes jobs together; leave it out, or add "
                "hydra/launcher=basic, which makes one after the other"
            )
