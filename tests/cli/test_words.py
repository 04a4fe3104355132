"""Mistyped commands and options: the message names the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import diffuse

COMMANDS = {
    "reprodcue": "did you mean diffuse reproduce?",
    "reproduc": "did you mean diffuse reproduce?",
    "dowload": "did you mean diffuse download?",
    "docter": "did you mean diffuse doctor?",
    "Doctor": "did you mean diffuse doctor?",
    "compare-runs": "did you mean diffuse compare?",
    "sync-now": "did you mean diffuse sync?",
    "generat": "did you mean diffuse generate?",
    "txt2img": "did you mean diffuse prompt=TEXT?",
    "sweep": "did you mean diffuse -m?",
    "help": "did you mean diffuse --help?",
    "plan-x": "did you mean diffuse plan?",
    "zzqq": "the commands are generate, ",
}


@pytest.mark.parametrize("word", COMMANDS)
def test_a_mistyped_command(word: str, tmp_path: Path) -> None:
    for arguments in ([word], [word, "outputs/x.png"], ["-m", word, "seed=1"]):
        done = diffuse(*arguments, cwd=tmp_path)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"diffuse: {word}: there is no such command") and COMMANDS[word] in done.err


def test_a_command_that_comes_late_and_a_bare_prompt(tmp_path: Path) -> None:
    assert "is a command, which goes first: diffuse doctor" in diffuse("hardware=cpu", "doctor", cwd=tmp_path).err
    assert 'a prompt is written as prompt="a panda face"' in diffuse("a panda face", cwd=tmp_path).err
    said = diffuse("a", "cat", "on", "red", "seed=1", cwd=tmp_path).err
    assert "a: there is no such command" in said and "a prompt is written as prompt='a cat on red'" in said


OPTIONS = {
    "--dryrun": "did you mean --dry-run?",
    "--multi-run": "did you mean --multirun?",
    "--config-dri": "did you mean --config-dir?",
    "--configname=x": "did you mean --config-name?",
    "--config-path=x": "--config-dir DIR adds",
    "-cp": "--config-dir DIR adds",
    "--info": "--cfg job",
    "--run": "a command without -m is a single run",
    "--experimental-rerun": "diffuse reproduce",
    "-x": "diffuse generate --help lists them",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_mistyped_option(option: str, tmp_path: Path) -> None:
    done = diffuse(option, "prompt=x", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert f"{option}: there is no such option; " in done.err and OPTIONS[option] in done.err


MISPLACED = {
    ("prompt=x", "--shell-completion", "install=bash"): "--shell-completion: goes first and alone",
    ("prompt=x", "-sc", "install=bash"): "-sc: goes first and alone",
    ("prompt=x", "--shell-completion=install"): "--shell-completion=install: goes first and alone",
    ("--hydra-help=3",): "--hydra-help=3: takes no value",
    ("prompt=x", "--yes=no"): "--yes=no: takes no value",
    ("prompt=x", "-y=no"): "-y=no: takes no value",
    ("prompt=x", "--dry-run=x"): "--dry-run=x: takes no value",
    ("prompt=x", "-m=2"): "-m=2: takes no value",
    ("prompt=x", "--multirun="): "--multirun=: takes no value",
    ("--cfg", "job", "--resolve=1"): "--resolve=1: takes no value",
    ("--help=seed",): "--help=seed: takes no value",
    ("--junit", "a.xml", "--junit", "b.xml"): "--junit: is given twice",
}


@pytest.mark.parametrize("arguments", MISPLACED)
def test_an_option_in_a_wrong_place_or_with_a_value(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = diffuse(*arguments, cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert done.err.startswith(f"diffuse: {MISPLACED[arguments]}"), done.err
    assert list(tmp_path.iterdir()) == []
