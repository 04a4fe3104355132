"""Shell completion: `diffuse --shell-completion install=bash`, by Hydra's own plugins for bash, zsh and fish.

The shell asks `diffuse -sc query=SHELL` with the line so far in `COMP_LINE`. Hydra completes fields, groups and their
options; commands, options and the values of fields with few of them are added here.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from enum import Enum
from typing import Any

from diffuse.cli.options import (
    CFG,
    CFG_VALUES,
    COMPLETION,
    CONFIG_DIR,
    CONFIG_NAME,
    FILE_OPTIONS,
    command_options,
    take_value,
)
from diffuse.cli.output import print_line
from diffuse.errors import ConfigError, DiffuseError

SHELLS = ("bash", "zsh", "fish")
_PLAIN = re.compile(r"[\w/@.]+=[\w,./-]+")  # an override that may choose an option, and needs no quotes


def takes_completion(arguments: Sequence[str]) -> bool:
    """Returns whether a command line is about shell completion."""
    return bool(arguments) and arguments[0] in COMPLETION


def run_completion(arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Runs `diffuse --shell-completion install=SHELL`, `uninstall=SHELL`, or a shell's `query=SHELL`.

    Args:
        arguments: of the command, the option first.
        commands: those of `diffuse`.

    Raises:
        ConfigError: it is asked for something else.
    """
    action, _, shell = (arguments[1] if len(arguments) == 2 else "").partition("=")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        asked = " ".join(arguments[1:])
        raise ConfigError(f"{arguments[0]} {asked}: should be install=SHELL or uninstall=SHELL, of {', '.join(SHELLS)}")
    if action == "query":
        found = complete(os.environ.get("COMP_LINE", ""), commands)
        print_line(("\n" if shell == "fish" else " ").join(found))
    else:
        from diffuse.cli.hydra_main import run_hydra

        run_hydra(["--shell-completion"], [f"{action}={shell}"], [], lambda cfg: None)


def complete(line: str, commands: Sequence[str]) -> list[str]:
    """Returns what the last word of a command line may become, sorted. Says nothing else, whatever the line holds."""
    words = line.split()[1:]
    word = words.pop() if words and not line[-1:].isspace() else ""
    before = words[-1] if words else ""
    if before in CFG:
        return [each for each in CFG_VALUES if each.startswith(word)]
    if before in (*FILE_OPTIONS, *CONFIG_NAME, "--card"):
        return []  # the shell completes files
    try:
        folder, words = take_value(words, CONFIG_DIR, "DIR")
        name, words = take_value(words, CONFIG_NAME, "NAME")
    except ConfigError:
        return []
    places = folder, name
    if not words and not word.startswith("-") and (found := [each for each in commands if each.startswith(word)]):
        return found + (_complete_override(words, word, *places) if not word else [])
    command = words[0] if words and words[0] in commands else "generate"
    if word.startswith("-"):
        return sorted(each for each in command_options(command) if each.startswith(word))
    if command == "compare" or words == ["reproduce"]:
        return []
    return _complete_override(words, word, *places)


def _complete_override(words: Sequence[str], word: str, folder: str | None, name: str | None) -> list[str]:
    from diffuse.config.compose import own_configuration
    from diffuse.config.own import SEARCHPATH

    overrides = [each for each in words if _PLAIN.fullmatch(each) or each.startswith(f"{SEARCHPATH}=")]
    for chosen in (overrides, []):
        try:
            with redirect_stderr(io.StringIO()), own_configuration(chosen, folder, name):
                values = _few_values(word)
                return _ask_hydra(chosen, word) if values is None else values
        except (DiffuseError, OSError, ValueError, LookupError, SystemExit):
            continue  # a terminal in the middle of a line is no place for messages
    return []


def _few_values(word: str) -> list[str] | None:
    """Returns the values of the field that `word` sets, if it has a few by name; None for another field."""
    from omegaconf import OmegaConf

    from diffuse.config.compose import compose_config
    from diffuse.schema import REQUEST_FIELDS, OutputFormat

    key, equals, begun = word.partition("=")
    if not equals:
        return None
    field: Any = REQUEST_FIELDS.get(key)
    value = OmegaConf.select(compose_config(), key)
    kind = field.type if field is not None and field.choices else type(value)
    if key == "output.format":  # which is null
        kind = OutputFormat
    names = [each.name for each in kind] if issubclass(kind, Enum) else ["true", "false"] if kind is bool else []
    return [f"{key}={each}" for each in names if each.startswith(begun)] if names else None


def _ask_hydra(overrides: Sequence[str], word: str) -> list[str]:
    from diffuse.cli.hydra_main import run_hydra
    from diffuse.config.quoting import quote_overrides

    asked, line = io.StringIO(), os.environ.get("COMP_LINE")
    os.environ["COMP_LINE"] = " ".join(["diffuse", *quote_overrides(overrides), word])
    try:
        with redirect_stdout(asked):
            run_hydra(["--shell-completion"], ["query=bash"], [], lambda cfg: None)
    finally:
        if line is None:
            del os.environ["COMP_LINE"]
        else:
            os.environ["COMP_LINE"] = line
    return asked.getvalue().split()
