"""`diffuse COMMAND --help`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import diffuse

from diffuse.cli.main import COMMANDS
from diffuse.cli.options import command_options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_listed(command: str, tmp_path: Path) -> None:
    done = diffuse(command, "--help", cwd=tmp_path)
    lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "") and all(len(line) <= 120 for line in lines)
    listed = {word for line in lines[1:] for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line[:28])}
    assert listed == set(command_options(command))
    assert f"diffuse {command}" in done.out.replace("[generate]", "generate")
