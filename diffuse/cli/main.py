"""The commands. Nothing is imported before it is needed: help and a refused request come without torch or MLflow."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import diffuse
from diffuse.cli import help as usage
from diffuse.errors import ConfigError, DiffuseError, RunError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from diffuse.sweep import Sweep
    from diffuse.sweep.progress import SweepProgress

COMMANDS = ("generate", "compare", "reproduce", "download", "doctor", "ui", "sync")
_CONFIGURATIONS = ("job", "hydra", "all")
_VALUED: dict[str, tuple[str, ...]] = {"--cfg": _CONFIGURATIONS, "-c": _CONFIGURATIONS, "--package": (), "-p": ()}
_INTERRUPTED = 130
_SPINS = "10000"  # libgomp's own 300,000 are for machines with nothing else to do
_LISTED = 50  # failures of a sweep
_GARBAGE = 100_000, 20, 100  # objects between Python's searches for cycles: imports make a million that stay


def main(argv: Sequence[str] | None = None) -> None:
    """The console command; exits with 0, 2 (the request is wrong), 1 (the run failed) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    _log_to_stderr()
    gc.set_threshold(*_GARBAGE)
    atexit.register(gc.freeze)  # Python would search what torch and Hydra made three times more before it ends
    # Before torch, whose threads wait for one another by spinning, is imported: where another process needs a core, and
    # be it the one that tracks, that makes everything five times slower. It changes no number.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
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
        commands: dict[str, Callable[[list[str]], None]] = {
            "compare": _compare,
            "reproduce": _reproduce,
            "download": _download,
            "doctor": _doctor,
            "ui": _ui,
            "sync": _sync,
        }
        assert command is not None
        commands[command](rest)


def _generate(arguments: list[str]) -> None:
    """Hands over to Hydra, which composes the configuration and calls `_job`; or, of a sweep, gives the jobs to its
    launcher."""
    junit, arguments = _junit(arguments)
    flags, overrides = _split(arguments)

    from diffuse import sweep
    from diffuse.cli import hydra_main
    from diffuse.config import compose as configuration
    from diffuse.run import model_auto

    multirun = bool({"-m", "--multirun"} & {*flags})
    if not flags and sweep.by_itself(overrides):
        multirun, flags = True, ["-m"]
    yes = bool({"-y", "--yes"} & {*flags})
    flags = [flag for flag in flags if flag not in ("-y", "--yes")]
    overrides = model_auto.resolve_model(overrides)
    quoted = configuration.quote(overrides, sweep=multirun)
    if multirun:
        _sweep(flags, quoted, overrides, yes)
    else:
        hydra_main.run(flags, quoted, overrides, partial(_job, junit=junit))


def _sweep(flags: list[str], quoted: list[str], typed: list[str], yes: bool) -> None:
    """All jobs of a sweep that are missing. Those that fail do not stop the others, and are told at the end."""
    from diffuse import sweep, tracking
    from diffuse.cli import hydra_main
    from diffuse.config import compose as configuration
    from diffuse.sweep import interrupt, jobs, launcher, launchers, start
    from diffuse.sweep.progress import SweepProgress

    launchers.register()
    with configuration.explained(typed):
        of, base, given = sweep.plan(quoted, typed, yes=yes)
    if not of.again:  # otherwise there may be nothing to do
        tracking.prepare(base.tracking)
    told, interruption = SweepProgress(), interrupt.Interruption()
    making = jobs.Jobs(of, base.tracking, interruption=interruption, told=told)
    stopping = "stopping after this step; Ctrl-C again stops at once"
    report: list[Path] = []
    with sweep.opened(of), interruption.watched(stopping, told.stop, partial(start.end, of.folder)):
        try:
            with launcher.registered(making):
                hydra_main.run(flags, given, typed, launchers.task)
            if told.changed or (told.done and not (of.folder / "report").is_dir()):
                report = _report_on(of, told, base.report.sheets) if base.report.make else []
                making.sum_up(told.metrics, report)
        finally:
            told.warn(making.close())
            if interruption.asked:
                told.say(f"{told.summary()}; the same command goes on from here")
    _end_sweep(of, told, report[0] if report else None)


def _report_on(of: Sweep, told: SweepProgress, sheets: bool) -> list[Path]:
    """The files that compare the pictures of a sweep, the page first; what goes wrong with them costs it nothing."""
    from diffuse import compare

    try:
        return compare.report(of.folder, wanted=compare.Wanted(sheets=sheets))
    except Exception as error:
        told.warn([f"there is no report: {type(error).__name__}: {error}"])
        return []


def _end_sweep(of: Sweep, told: SweepProgress, report: Path | None) -> None:
    """Says how a sweep ended; raises where jobs of it failed, which are told in a line each."""
    from diffuse.terminal import print_error

    failures = [job.error for job in told.failed if job.error is not None]
    wrong = all(isinstance(error, DiffuseError) and error.exit_status == ConfigError.exit_status for error in failures)
    if told.jobs and not (wrong and len(failures) == len(told.jobs)):
        told.say(told.summary(report))
    for job in told.failed[:_LISTED]:
        if isinstance(job.error, DiffuseError):
            _say(f"{job.said(of.axes)}: {job.error}")
        elif job.error is not None:
            _report(job.error)
    if len(failures) > _LISTED:
        _say(f"and {len(failures) - _LISTED} more")
    if failures:
        jobs = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
        message = f"{jobs} of the sweep failed, as said above"
        raise ConfigError(message) if wrong else RunError(message)
    if unprinted := print_error():
        raise RunError(f"standard output cannot be written: {unprinted.strerror}; the pictures are in {of.folder}")


def _job(cfg: DictConfig, junit: Path | None) -> None:
    from hydra.core.hydra_config import HydraConfig

    from diffuse.config import compose as configuration
    from diffuse.config import request as validation

    if junit is not None and cfg.suite is None:
        raise ConfigError(f"--junit {junit}: is of a suite of checks; add experiment=smoke")
    if cfg.suite is not None:
        return _suite(cfg, configuration.typed(HydraConfig.get().overrides.task), junit)
    drafts = validation.drafts(cfg)  # before torch is imported

    from diffuse import tracking

    tracking.prepare(cfg.tracking)

    from diffuse.run.run import run

    run(cfg, drafts=drafts, overrides=configuration.typed(HydraConfig.get().overrides.task))


def _suite(cfg: DictConfig, overrides: Sequence[str], junit: Path | None) -> None:
    from diffuse.smoke import cases

    cases.check(overrides, junit)  # before torch is imported

    from diffuse.smoke import suite

    suite.run(cfg, overrides, junit)


def _junit(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The file that `--junit` names, and the other arguments."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--junit":
            rest = arguments[place + 1 :]
            value = value if equals else rest.pop(0) if rest else ""
            if not value:
                raise ConfigError("--junit: write it to which file? --junit FILE")
            return Path(value), arguments[:place] + rest
    return None, arguments


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
        if name not in ("-m", "--multirun", "--yes", "-y", "--resolve", "--hydra-help", *_VALUED):
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

    from diffuse.run import model_auto

    return model_auto.compose_model([argument for argument in arguments if argument not in allowed])


def _download(arguments: list[str]) -> None:
    cfg = _compose(arguments, ("--yes", "-y"))

    from diffuse.config import request as validation

    validation.check_targets(cfg)

    from diffuse.checkpoints.locate import download_checkpoints
    from diffuse.checkpoints.model_sources import model_sources
    from diffuse.run import open as opening
    from diffuse.schema import Download

    agreed = "--yes" in arguments or "-y" in arguments
    for checkpoint in download_checkpoints(
        model_sources(cfg, opening.component_names(cfg)), Download.yes if agreed else cfg.model.download
    ):
        _print(checkpoint.folder)


def _compare(arguments: list[str]) -> None:
    from diffuse import compare
    from diffuse.compare import arguments as compared

    said = compared.read(arguments)
    tracking = cache(lambda: _compose(said.overrides).tracking)
    if said.overrides:
        tracking()  # which says what is wrong with them before anything is made
    files = compare.compare(said.names, said.out, tracking, said.wanted)
    for path in files:
        _print(path)


def _reproduce(arguments: list[str]) -> None:
    agreed = ["model.download=yes"] if "--yes" in arguments or "-y" in arguments else []
    target, *overrides = [argument for argument in arguments if argument not in ("--yes", "-y")] or [""]
    for argument in (target, *overrides):
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: there is no such option here; diffuse --help lists them")

    from diffuse.reproduce import replay

    asked = replay.asked(target, [*overrides, *agreed])  # before torch is imported

    from diffuse.reproduce import reproduce

    reproduce.reproduce(asked)


def _doctor(arguments: list[str]) -> None:
    cfg = _compose(arguments)

    from omegaconf import OmegaConf
    from rich.console import Console

    from diffuse.cli import doctor
    from diffuse.config import compose as configuration
    from diffuse.schema import HardwareConfig

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


def _sync(arguments: list[str]) -> None:
    cfg = _compose(arguments)

    from diffuse.terminal import say
    from diffuse.tracking import sync

    sync.sync(cfg.tracking, say)


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
