"""Hydra's main function as a plain call: it takes the arguments, and raises errors as they were raised."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from hydra import main
from omegaconf import DictConfig

from diffuse.config.groups import CONFIG_NAME, conf_dir, without_nodes_of_plugins
from diffuse.config.mistakes import explain_errors
from diffuse.config.own import own_config
from diffuse.errors import RunError

_PRINTING = {"--cfg", "-c", "--shell-completion"}  # options of Hydra that print and run nothing


def run_hydra(
    flags: list[str], overrides: list[str], command_line: list[str], task: Callable[[DictConfig], Any]
) -> None:
    """Composes the configuration by Hydra, and runs or launches `task` with it.

    Args:
        flags: Hydra's own options.
        overrides: in Hydra's grammar.
        command_line: the same as the user typed them, for messages.
    """
    failures: list[Exception] = []

    def run_task(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except Exception as error:
            failures.append(error)  # Hydra would add lines of its own to it
            return None

    prints = not _PRINTING.isdisjoint(flag.partition("=")[0] for flag in flags)
    entry = main(config_path=str(conf_dir()), config_name=own_config().name or CONFIG_NAME, version_base="1.3")
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra takes its arguments from here, and raises exceptions only with this variable.
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["diffuse", *flags, *overrides], "1"
    try:
        with explain_errors(command_line), without_nodes_of_plugins():
            entry(run_task)()
        if prints:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if not prints:
            raise
        raise RunError(f"standard output cannot be written: {error.strerror}") from error
    finally:
        sys.argv = argv
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    if failures:
        raise failures[0]
