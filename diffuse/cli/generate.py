"""`diffuse generate`, which is also `diffuse` alone: makes pictures, a suite of checks, or a sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse.cli.options import CFG, FLAGS, FLAGS_WITH_VALUE, MULTIRUN, OWN_FLAGS, YES
from diffuse.cli.output import print_line
from diffuse.cli.words import wrong_option
from diffuse.errors import ConfigError
from diffuse.paths import user_path

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_generate(arguments: list[str]) -> None:
    """Runs `diffuse generate`: Hydra composes the configuration and runs the job, or launches the jobs of a sweep."""
    junit, arguments = _take_junit(arguments)
    flags, command_line = _split(arguments)
    if "--hydra-help" in flags:
        from diffuse.cli.hydra_help import hydra_help_text

        return print_line(hydra_help_text())

    from diffuse.cli.hydra_main import run_single
    from diffuse.config.groups import compose_quoted
    from diffuse.config.hydra_settings import check_hydra_config, check_hydra_overrides, may_set_hydra
    from diffuse.config.mistakes import explain_errors
    from diffuse.config.quoting import quote_overrides
    from diffuse.run import model_auto
    from diffuse.sweep.auto_models import resolve_swept_models
    from diffuse.sweep.plan import is_sweep

    yes, dry = not {*YES}.isdisjoint(flags), "--dry-run" in flags
    flags = [flag for flag in flags if flag not in OWN_FLAGS]
    multirun = not {*MULTIRUN}.isdisjoint(flags)
    if not flags and is_sweep(command_line):
        multirun, flags = True, ["-m"]
    if dry and (other := next((flag for flag in flags if flag not in MULTIRUN), None)):
        raise ConfigError(f"--dry-run and {other}: each prints something else; leave one of them out")
    if dry and junit is not None:
        raise ConfigError(f"--dry-run and --junit {junit}: nothing is checked; leave one of them out")
    prints = not {*CFG}.isdisjoint(flags)
    if not prints:
        check_hydra_overrides(command_line, sweep=multirun)
    if yes and not multirun and not prints:
        command_line = [*command_line, "model.download=yes"]
    resolve = resolve_swept_models if multirun else model_auto.resolve_model
    command_line = resolve(command_line)
    overrides = quote_overrides(command_line, sweep=multirun)
    if not (prints or multirun) and may_set_hydra(command_line):  # before Hydra makes a folder
        with explain_errors(command_line):
            hydra = compose_quoted(overrides, hydra=True).hydra
            check_hydra_config(hydra)
            if hydra.output_subdir:
                raise ConfigError(
                    f"hydra.output_subdir={hydra.output_subdir}: a run is described in its pictures, and by --cfg; "
                    "leave it out"
                )
    if "--resolve" in flags and not multirun:  # of which Hydra says what is wrong, and not where
        with explain_errors(command_line):
            compose_quoted(overrides)
    if not multirun:
        _note_choices(command_line)
    if dry:
        from diffuse.cli.dry_run import list_run, list_sweep

        if multirun:
            list_sweep(flags, overrides, command_line, yes)
        else:
            list_run(flags, overrides, command_line)
    elif multirun:
        from diffuse.cli.sweep import run_sweep

        run_sweep(flags, overrides, command_line, yes)
    else:
        run_single(flags, overrides, command_line, partial(_run_job, junit=junit))


def _note_choices(command_line: Sequence[str]) -> None:
    """Says that a prompt is taken literally where it looks like several."""
    from diffuse.schema import PROMPT_FIELDS
    from diffuse.terminal import say

    for name, _, value in (override.partition("=") for override in command_line):
        if name in PROMPT_FIELDS and re.fullmatch(r"(choice|glob)\s*\(.*\)", value.strip(), re.DOTALL):
            say(f"note: {name}={' '.join(value.split())} is taken literally; diffuse -m makes a sweep over the texts")


def _run_job(cfg: DictConfig, overrides: Sequence[str], junit: Path | None) -> None:
    from diffuse.config.quoting import unquote_overrides
    from diffuse.config.request import draft_requests

    if junit is not None and cfg.suite is None:
        raise ConfigError(f"--junit {junit}: is of a suite of checks; add experiment=smoke")
    overrides = unquote_overrides(overrides)
    if cfg.suite is not None:
        return _run_suite(cfg, overrides, junit)
    drafts = draft_requests(cfg)  # before torch is imported

    from diffuse import tracking

    tracking.start_worker(cfg.tracking)

    from diffuse.run import run

    run.run(cfg, drafts=drafts, overrides=overrides)


def _run_suite(cfg: DictConfig, overrides: Sequence[str], junit: Path | None) -> None:
    from diffuse.smoke.cases import check_overrides

    check_overrides(overrides, junit)  # before torch is imported

    from diffuse.smoke.suite import run_suite

    run_suite(cfg, overrides, junit)


def _take_junit(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the file that `--junit` names, and the other arguments."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--junit":
            rest = arguments[index + 1 :]
            value = value if equals else rest.pop(0) if rest else ""
            if not value:
                raise ConfigError("--junit: write it to which file? --junit FILE")
            return user_path(value, "--junit"), arguments[:index] + rest
    return None, arguments


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Returns the options, most of which are Hydra's, and the overrides: everything without a dash before."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if argument not in FLAGS and name not in FLAGS_WITH_VALUE:
            raise wrong_option(argument)
        if name in FLAGS_WITH_VALUE:
            value = value if equals else next(rest, "")
            choices = FLAGS_WITH_VALUE[name]
            if not value or (choices and value not in choices):
                raise ConfigError(f"{name} {value}: should be one of {', '.join(choices) or 'the groups'}")
            flags += [name, value]
        else:
            flags.append(argument)
    return flags, overrides
