"""Hydra's main function, as a call: the arguments are given, and errors come out as they were raised."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from hydra import main
from omegaconf import DictConfig

from diffuse.config.groups import CONFIG_NAME, conf_dir
from diffuse.config.mistakes import explain_errors


def run(flags: list[str], quoted: list[str], typed: list[str], task: Callable[[DictConfig], Any]) -> None:
    """Hydra's main function: composes what `quoted` says, which was `typed`, and runs or launches `task`."""
    failures: list[Exception] = []

    def kept(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except Exception as error:
            failures.append(error)  # from Hydra, which would add lines of its own
            return None

    entry = main(config_path=str(conf_dir()), config_name=CONFIG_NAME, version_base="1.3")
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra takes its arguments from here, and lets exceptions out only when it is told to.
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["diffuse", *flags, *quoted], "1"
    try:
        with explain_errors(typed):
            entry(kept)()
    finally:
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    if failures:
        raise failures[0]
