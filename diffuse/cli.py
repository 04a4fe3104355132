"""The commands. Nothing is imported before it is needed: help and a refused request come without torch or MLflow."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import diffuse
from diffuse import usage
from diffuse.errors import ConfigError, DiffuseError, MediaError, RunError

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = ("generate", "download", "doctor", "ui")
_CONFIGURATIONS = ("job", "hydra", "all")
_VALUED: dict[str, tuple[str, ...]] = {"--cfg": _CONFIGURATIONS, "-c": _CONFIGURATIONS, "--package": (), "-p": ()}
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """The console command; exits with 0, 2 (the request is wrong), 1 (the run failed) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    _log_to_stderr()
    try:
        _dispatch(arguments)
        status = 0
    except KeyboardInterrupt:
        _say("interrupted")
        status = _INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone
        status = 1
    except Exception as error:
        _report(error)
        status = error.exit_status if isinstance(error, DiffuseError) else 1
    sys.exit(status if _written() else status or 1)


def _written() -> bool:
    """Whether standard output took all that was printed; the rest is dropped, or Python would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _print(text: object) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"standard output cannot be written: {error.strerror}") from error


def _dispatch(arguments: list[str]) -> None:
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    rest = arguments[1:] if command else arguments
    if any(argument in ("-h", "--help") for argument in rest):
        _print(usage.text())
    elif "--version" in rest:
        _print(f"diffuse {diffuse.__version__}")
    elif command in (None, "generate"):
        _generate(rest)
    else:
        commands: dict[str, Callable[[list[str]], None]] = {"download": _download, "doctor": _doctor, "ui": _ui}
        assert command is not None
        commands[command](rest)


def _generate(arguments: list[str]) -> None:
    """Hands over to Hydra, which composes the configuration and calls `_job` once, or once a job of a sweep."""
    flags, overrides = _split(arguments)
    multirun = any(flag in ("-m", "--multirun") for flag in flags)

    from hydra import main as hydra_main

    from diffuse import configuration, model_family, sweep

    overrides = model_family.resolved(overrides)
    quoted = configuration.quote(overrides, sweep=multirun)
    if multirun:
        quoted.append(sweep.OVERRIDE)
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            _job(cfg)
        except Exception as error:
            if multirun:
                sweep.remove_empty_job(_job_folder())
            if not _in_this_process():
                raise
            # Kept back from Hydra, which would add lines of its own; the other jobs of a sweep go on.
            failures.append(error)
            if multirun:
                _report(error)

    entry = hydra_main(config_path=str(configuration.conf_dir()), config_name=configuration.NAME, version_base="1.3")
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra takes its arguments from here, and lets exceptions out only when it is told to.
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["diffuse", *flags, *quoted], "1"
    try:
        with configuration.explained(overrides):
            entry(job)()
    except OSError as error:
        if multirun and error.filename:  # the folder of the sweep is Hydra's to make
            reason = f"{error.filename} cannot be written: {error.strerror}"
            raise MediaError(f"output.dir: {reason}; choose another folder") from error
        raise
    finally:
        if multirun:
            sweep.remove_empty_sweep()
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    if failures and multirun:
        jobs = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
        raise _failed_sweep(f"{jobs} of the sweep failed, as said above", failures)
    if failures:
        raise failures[0]


def _failed_sweep(message: str, failures: Sequence[Exception]) -> DiffuseError:
    """With the status 2 where every failure is a wrong request, otherwise 1."""
    wrong = all(isinstance(error, DiffuseError) and error.exit_status == ConfigError.exit_status for error in failures)
    return ConfigError(message) if wrong else RunError(message)


def _job_folder() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def _in_this_process() -> bool:
    """Whether Hydra's own launcher runs the job, and not one that spreads jobs over other processes."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().launcher._target_).endswith(".BasicLauncher")


def _job(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from diffuse import configuration, validation

    hydra = HydraConfig.get()
    sweep = None
    if hydra.mode == RunMode.MULTIRUN:
        sweep = str(cfg.output.dir)
        cfg.output.dir = str(Path(sweep) / str(hydra.job.num))
    drafts = validation.drafts(cfg)  # before torch is imported

    from diffuse import run

    run.run(cfg, drafts=drafts, overrides=configuration.typed(hydra.overrides.task), sweep=sweep)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's own options, and the overrides: all that does not begin with a dash."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in ("-m", "--multirun", "--resolve", "--hydra-help", *_VALUED):
            raise ConfigError(f"{argument}: there is no such option; diffuse --help lists them")
        if name in _VALUED:
            value = value if equals else next(rest, "")
            choices = _VALUED[name]
            if not value or (choices and value not in choices):
                raise ConfigError(f"{name} {value}: should be one of {', '.join(choices) or 'the groups'}")
            flags += [name, value]
        else:
            flags.append(argument)
    return flags, overrides


def _compose(arguments: list[str], allowed: Sequence[str] = ()) -> DictConfig:
    for argument in arguments:
        if argument.startswith("-") and argument not in allowed:
            raise ConfigError(f"{argument}: there is no such option here; diffuse --help lists them")

    from diffuse import configuration

    return configuration.compose([argument for argument in arguments if argument not in allowed])


def _download(arguments: list[str]) -> None:
    cfg = _compose(arguments, ("--yes", "-y"))

    from diffuse import validation

    validation.check_targets(cfg)

    from diffuse import hub, run, sources
    from diffuse.request import Download

    agreed = "--yes" in arguments or "-y" in arguments
    for checkpoint in hub.download(
        sources.wanted(cfg, run.folders(cfg)), Download.yes if agreed else cfg.model.download
    ):
        _print(checkpoint.folder)


def _doctor(arguments: list[str]) -> None:
    cfg = _compose(arguments)

    from omegaconf import OmegaConf
    from rich.console import Console

    from diffuse import configuration, doctor
    from diffuse.request import HardwareConfig

    report = doctor.report(
        configuration.load_group("model"),
        configuration.load_group("memory_profile"),
        tracking_uri=cfg.tracking.uri,
        config=cast(HardwareConfig, OmegaConf.to_object(cfg.hardware)),
    )
    Console().print(report)


def _ui(arguments: list[str]) -> None:
    cfg = _compose(arguments)

    from diffuse import tracking

    tracking.ui(cfg.tracking)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return prefix + " ".join(record.getMessage().split())


def _log_to_stderr() -> None:
    """What the library logs reaches the user as lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    log = logging.getLogger("diffuse")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _prepare_streams() -> None:
    """A stream that the caller closed leads nowhere, and its number goes to no file. Any path can be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - takes the lowest free number: its own
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def _report(error: Exception) -> None:
    """One line for what the user can mend; a traceback for what only a developer can."""
    if isinstance(error, DiffuseError):
        _say(str(error))
    else:
        traceback.print_exception(error)


def _say(message: str) -> None:
    print(f"diffuse: {' '.join(message.split())}", file=sys.stderr, flush=True)
