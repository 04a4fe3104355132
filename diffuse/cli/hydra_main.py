"""Runs the task of a command, by Hydra's main function where more of Hydra is used than its configuration.

That composes twice, at first to learn its mode. It is called with the arguments, and raises errors as they were raised.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from hydra import main
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffuse.cli.options import MULTIRUN
from diffuse.config.groups import CONFIG_NAME, compose_quoted, conf_dir, without_nodes_of_plugins
from diffuse.config.hydra_settings import check_hydra_config, needs_hydra
from diffuse.config.mistakes import explain_errors
from diffuse.config.own import own_config, with_own_places
from diffuse.config.quoting import quote_value, task_overrides
from diffuse.config.root import check_parts
from diffuse.errors import ConfigError, RunError

if TYPE_CHECKING:
    from diffuse.sweep.runner import JobRunner

_HYDRAS_LINE = "Error executing job with overrides"  # what Hydra writes before it raises the error of a job
_PRINTING = {"--cfg", "-c", "--shell-completion"}  # options of Hydra that print and run nothing


def run_single(
    flags: list[str], overrides: list[str], command_line: list[str], task: Callable[[DictConfig, list[str]], Any]
) -> None:
    """Composes the configuration of a single run, and runs `task` with it and with the overrides that are not Hydra's.

    Args:
        flags: Hydra's own options.
        overrides: in Hydra's grammar.
        command_line: the same as the user typed them, for messages.
    """

    def run_task(cfg: DictConfig) -> Any:
        hydra = HydraConfig.get()
        check_hydra_config(hydra)
        return task(cfg, task_overrides(hydra))

    if flags or needs_hydra(overrides):
        return run_hydra(flags, overrides, command_line, run_task)
    with explain_errors(command_line):
        cfg = compose_quoted(overrides)
    task(cfg, overrides)


def run_jobs(
    runner: JobRunner,
    base: DictConfig,
    flags: list[str],
    overrides: list[str],
    command_line: list[str],
    folder: Path,
) -> None:
    """Has `runner` run the jobs of a sweep, which Hydra's sweeper and launcher hand to it where there are others.

    Args:
        base: what the jobs share, with Hydra's settings under `hydra`.
        flags: Hydra's own options.
        overrides: in Hydra's grammar.
        command_line: the same as the user typed them, for messages.
        folder: for the file in which the sweep's configuration is left.
    """
    from diffuse.sweep.grid import needs_plugins, run_grid
    from diffuse.sweep.launcher import launching
    from diffuse.sweep.launchers.foreign import run_job

    if not {*flags} <= {*MULTIRUN} or needs_plugins(base, overrides):
        with launching(runner):
            return run_hydra(flags, [*overrides, f"hydra.sweep.dir={quote_value(str(folder))}"], command_line, run_job)
    with explain_errors(command_line):
        run_grid(runner, base, overrides, folder)


def run_hydra(
    flags: list[str], overrides: list[str], command_line: list[str], task: Callable[[DictConfig], Any]
) -> None:
    """Composes the configuration by Hydra, and runs or launches `task` with it.

    Args:
        flags: Hydra's own options.
        overrides: in Hydra's grammar.
        command_line: the same as the user typed them, for messages.
    """
    failures: list[Exception] = []  # of the task: in a sweep each ends its own job
    failure: Exception | None = None
    stderr = sys.stderr

    def run_task(cfg: DictConfig) -> Any:
        try:
            check_parts(cfg)
            return task(cfg)
        except Exception as error:  # which Hydra tells to its callbacks
            failures.append(error)
            sys.stderr = cast(TextIO, _WithoutHydrasLine(stderr))
            raise

    prints = not _PRINTING.isdisjoint(flag.partition("=")[0] for flag in flags)
    entry = main(config_path=str(conf_dir()), config_name=own_config().name or CONFIG_NAME, version_base="1.3")
    if "--shell-completion" not in flags:  # which takes a question in place of overrides
        overrides = with_own_places(overrides)
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra takes its arguments from here, and raises exceptions only with this variable.
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["diffuse", *flags, *overrides], "1"
    part = io.StringIO()  # what Hydra says of a part of the configuration that is not there
    try:
        with explain_errors(command_line), without_nodes_of_plugins():
            try:
                with redirect_stderr(part) if prints else nullcontext():
                    entry(run_task)()
            except Exception as error:
                if error not in failures:
                    raise
                failure = error
            except SystemExit as end:
                if not end.code or not prints:
                    raise
                said = part.getvalue().strip()
                raise ConfigError(
                    f"{said or 'nothing could be printed'}; diffuse --cfg job prints all there is"
                ) from None
        if prints:
            stderr.write(part.getvalue())
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if not prints:
            raise
        raise RunError(f"standard output cannot be written: {error.strerror}") from error
    finally:
        sys.argv, sys.stderr = argv, stderr
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    if failure is not None:
        raise failure


class _WithoutHydrasLine:
    """A stream without the line that Hydra writes about a job that failed: the error is reported in one of ours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return len(text) if text.startswith(_HYDRAS_LINE) else self._stream.write(text)
