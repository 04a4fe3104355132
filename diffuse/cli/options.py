"""The options of each command, for the commands that read them and for shell completion. Nothing is imported for it."""

from __future__ import annotations

from collections.abc import Sequence

from diffuse.errors import ConfigError

YES = ("--yes", "-y")
MULTIRUN = ("-m", "--multirun")
MEASURE = "--measure"
CONFIG_DIR = ("--config-dir", "-cd")
CONFIG_NAME = ("--config-name", "-cn")
HELP = ("--help", "-h")
VERSION = "--version"
OUT = "--out"
COMPLETION = ("--shell-completion", "-sc")

OWN_FLAGS = (*YES, "--dry-run")  # of `generate`; the others are Hydra's
FLAGS = (*MULTIRUN, *OWN_FLAGS, "--resolve", "--hydra-help")
CFG = ("--cfg", "-c")
CFG_VALUES = ("job", "hydra", "all")
FLAGS_WITH_VALUE: dict[str, tuple[str, ...]] = {**dict.fromkeys(CFG, CFG_VALUES), "--package": (), "-p": ()}
FILE_OPTIONS = (*CONFIG_DIR, "--junit", OUT)  # whose values are files, which the shell completes

SERVICE = (  # those of `ServiceSettings`
    "--host",
    "--port",
    "--max-body",
    "--max-prompts",
    "--max-prompt-length",
    "--max-queue",
    "--max-connections",
    "--batch-size",
    "--timeout",
)

_EVERYWHERE = (*CONFIG_DIR, *CONFIG_NAME, *HELP, VERSION)
_OF_COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": (*FLAGS, *FLAGS_WITH_VALUE, "--junit", *COMPLETION),
    "plan": ("--json", "--card", *MULTIRUN, *YES),
    "compare": (OUT, "--x", "--y", "--z", "--reference", "--no-sheets"),
    "convert": ("--precision", "--shard-size", *YES),
    "encode": (OUT, *YES),
    "serve-text": (*SERVICE, *YES),
    "reproduce": YES,
    "download": YES,
    "doctor": (MEASURE,),
}


def command_options(command: str) -> tuple[str, ...]:
    """Returns every option that a command takes."""
    return (*_OF_COMMANDS.get(command, ()), *_EVERYWHERE)


def take_value(arguments: Sequence[str], names: Sequence[str], kind: str) -> tuple[str | None, list[str]]:
    """Returns the value of an option, the last one given, and the other arguments.

    Args:
        arguments: those of the command line.
        names: of the option.
        kind: how messages call a value of it, such as `DIR`.

    Raises:
        ConfigError: the option is there without a value.
    """
    found, others, rest = None, [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in names:
            others.append(argument)
            continue
        found = value if equals else next(rest, "")
        if not found or found.startswith("-"):
            raise ConfigError(f"{name}: needs a value: {name} {kind}")
    return found, others
