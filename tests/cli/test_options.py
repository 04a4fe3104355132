"""The options of each command, and their values."""

from __future__ import annotations

import pytest

from diffuse.cli.main import COMMANDS
from diffuse.cli.options import CONFIG_DIR, command_options, take_value
from diffuse.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "value", "rest"),
    [
        ("model=x --config-dir a seed=1", "a", ["model=x", "seed=1"]),
        ("-cd=a --config-dir b", "b", []),
        ("--config-dirs a", None, ["--config-dirs", "a"]),
        ("", None, []),
    ],
)
def test_a_value_is_taken(line: str, value: str | None, rest: list[str]) -> None:
    assert take_value(line.split(), CONFIG_DIR, "DIR") == (value, rest)


@pytest.mark.parametrize("line", ["-cd", "-cd=", "-cd --yes"])
def test_a_value_that_is_missing(line: str) -> None:
    with pytest.raises(ConfigError, match="-cd: needs a value: -cd FOLDER"):
        take_value(line.split(), CONFIG_DIR, "FOLDER")


def test_every_command_has_its_options() -> None:
    for command in COMMANDS:
        options = command_options(command)
        assert {"--help", "--config-dir", "-cn"} <= {*options} and len({*options}) == len(options)
    assert "--measure" in command_options("doctor") and "--measure" not in command_options("plan")
