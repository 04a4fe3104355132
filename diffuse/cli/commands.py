"""The commands beside `generate`: each reads its arguments and calls the room that does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, cast

from diffuse.cli.options import MEASURE, OUT, YES, take_value
from diffuse.cli.output import print_line, writing_output
from diffuse.errors import ConfigError, DiffuseError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_command(command: str, arguments: list[str]) -> None:
    """Runs `diffuse COMMAND ARGUMENTS`."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "plan": _plan,
        "compare": _compare,
        "convert": _convert,
        "reproduce": _reproduce,
        "download": _download,
        "doctor": _doctor,
        "ui": _ui,
        "sync": _sync,
        "encode": _encode,
        "serve-text": _serve_text,
    }
    commands[command](arguments)


def _check_options(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: there is no such option here; --help behind the command lists them")


def _take_yes(arguments: list[str]) -> tuple[bool, list[str]]:
    """Returns whether `--yes` was given, and the other arguments."""
    rest = [argument for argument in arguments if argument not in YES]
    return len(rest) < len(arguments), rest


def _compose(overrides: list[str]) -> DictConfig:
    _check_options(overrides)

    from diffuse.run import model_auto

    return model_auto.compose_model(overrides)


def _plan(arguments: list[str]) -> None:
    from diffuse.cli.plan import run_plan

    run_plan(arguments)


def _download(arguments: list[str]) -> None:
    yes, overrides = _take_yes(arguments)
    cfg = _compose([*overrides, "model.download=yes"] if yes else overrides)

    from diffuse.config.checks import check_targets

    check_targets(cfg)

    from diffuse.checkpoints.listed_files import listed_sources
    from diffuse.checkpoints.locate import download_checkpoints
    from diffuse.checkpoints.model_sources import model_sources
    from diffuse.checkpoints.single_file import SingleFile
    from diffuse.pipelines.families import component_names
    from diffuse.schema import Download

    consent = Download.yes if yes else cfg.model.download
    sources = [*model_sources(cfg, component_names(cfg)), *listed_sources(cfg, consent)]
    for checkpoint in download_checkpoints(sources, consent):
        print_line(checkpoint.file if isinstance(checkpoint, SingleFile) else checkpoint.folder)


def _compare(arguments: list[str]) -> None:
    from diffuse.compare.arguments import parse_compare_arguments
    from diffuse.compare.report import compare_names

    said = parse_compare_arguments(arguments)
    tracking = cache(lambda: _compose(said.overrides).tracking)
    if said.overrides:
        tracking()  # so that mistakes in them are found before anything is made
    files = compare_names(said.names, said.out, tracking, said.options)
    for path in files:
        print_line(path)


def _convert(arguments: list[str]) -> None:
    from diffuse.convert.arguments import parse_convert_arguments

    yes, rest = _take_yes(arguments)
    said = parse_convert_arguments(rest)
    cfg = _compose([*said.composed, *(["model.download=yes"] if yes else [])])

    from diffuse.convert.convert import convert

    print_line(convert(said, cfg))


def _encode(arguments: list[str]) -> None:
    from diffuse.service.encode import embeddings_path, encode_prompts

    yes, rest = _take_yes(arguments)
    out, overrides = take_value(rest, (OUT,), "FILE.safetensors")
    path = embeddings_path(out)
    cfg = _compose([*overrides, *(["model.download=yes"] if yes else [])])

    from diffuse.config.request import draft_requests

    print_line(encode_prompts(cfg, draft_requests(cfg), path))


def _serve_text(arguments: list[str]) -> None:
    from diffuse.service.settings import parse_service_arguments

    yes, rest = _take_yes(arguments)
    settings, overrides = parse_service_arguments(rest)
    cfg = _compose([*overrides, *(["model.download=yes"] if yes else [])])

    from diffuse.config.checks import check_targets
    from diffuse.service.serve import serve_text

    check_targets(cfg)
    serve_text(cfg, settings, print_line)


def _reproduce(arguments: list[str]) -> None:
    yes, rest = _take_yes(arguments)
    target, *overrides = rest or [""]
    _check_options([target, *overrides])
    for argument in overrides:
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(f"{argument}: diffuse reproduce makes one file again at a time; call it for each")

    from diffuse.reproduce.reproduction import find_reproduction

    reproduction = find_reproduction(
        target, [*overrides, *(["model.download=yes"] if yes else [])]
    )  # before torch is imported

    from diffuse.reproduce.reproduce import reproduce

    reproduce(reproduction)


def _doctor(arguments: list[str]) -> None:
    overrides = [argument for argument in arguments if argument != MEASURE]
    cfg = _compose(overrides)

    from omegaconf import OmegaConf
    from rich.console import Console

    from diffuse.cli import doctor
    from diffuse.config.groups import conf_dir, load_group
    from diffuse.config.own import own_config
    from diffuse.config.own_files import hidden_files
    from diffuse.schema import HardwareConfig

    config = cast(HardwareConfig, OmegaConf.to_object(cfg.hardware))
    if MEASURE in arguments:
        doctor.measure(config)
    groups = {group: load_group(group) for group in ("model", "memory_profile")}
    hidden = hidden_files(own_config().folders, conf_dir())
    mistakes: dict[str, DiffuseError] = {"=".join(name.rsplit("/", 1)): error for name, error in hidden.items()}
    mistakes |= {f"{group}={name}": error for group in groups for name, error in groups[group].mistakes.items()}
    report = doctor.report(
        groups["model"],
        groups["memory_profile"],
        tracking=None if cfg.tracking.name == "none" else cfg.tracking,
        config=config,
        mistakes=mistakes,
    )
    with writing_output():
        Console().print(report)


def _ui(arguments: list[str]) -> None:
    cfg = _compose(arguments)

    from diffuse.tracking import ui

    ui.serve(cfg.tracking, show=print_line)


def _sync(arguments: list[str]) -> None:
    cfg = _compose(arguments)

    from diffuse.terminal import say
    from diffuse.tracking import sync

    sync.sync(cfg.tracking, say)
