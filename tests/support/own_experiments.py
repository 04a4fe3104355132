"""Experiments that a test adds to a copy of `conf/`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffuse.config import groups


def own_conf(folder: Path, monkeypatch: pytest.MonkeyPatch, **experiments: str) -> None:
    """Has the command read a copy of `conf/` in `folder`, with these experiments in it."""
    conf = folder / "conf"
    shutil.copytree(groups.conf_dir(), conf)
    for module in ("diffuse.config.groups", "diffuse.cli.hydra_main", "diffuse.sweep.plan"):
        monkeypatch.setattr(f"{module}.conf_dir", lambda: conf)
    for name, text in experiments.items():
        (conf / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


def sweep_yaml(*params: str, **settings: str) -> str:
    """An experiment that is a sweep over these lines of `hydra.sweeper.params`."""
    lines = ["hydra:", "  mode: MULTIRUN", "  sweeper:", *(f"    {name}: {value}" for name, value in settings.items())]
    return "\n".join([*lines, "    params:", *(f"      {line}" for line in params), ""])
