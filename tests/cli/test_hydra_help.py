"""`diffuse --hydra-help` lists what works here, and nothing that is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import diffuse

from diffuse.cli.hydra_help import OPTIONS

VALUES = {"--cfg": "job", "--package": "model", "--config-dir": ".", "--config-name": "config"}
REFUSED = ["--run", "-r", "--config-path", "-cp", "--info", "-i", "--experimental-rerun"]


def test_nothing_that_is_refused_is_listed(tmp_path: Path) -> None:
    done = diffuse("--hydra-help", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert all(len(line) <= 120 for line in done.out.splitlines())
    listed = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", done.out))
    assert listed == {name for names in OPTIONS for name in names} | {"--help"}
    for option in REFUSED:
        assert option not in listed
        refused = diffuse(option, "prompt=x", cwd=tmp_path)
        assert refused.status == 2 and f"{option}: there is no such option; " in refused.err


@pytest.mark.parametrize("names", OPTIONS, ids=" ".join)
def test_what_is_listed_works(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        value = [VALUES[names[-1]]] if names[-1] in VALUES else []
        rest = {"-sc": ["install=bash"], "-m": ["seed=1,2", "--dry-run", "prompt=x"]}.get(names[0], [])
        beside = ["--cfg", "job"] if names[-1] in ("--package", "--resolve", "--config-dir", "--config-name") else []
        done = diffuse(name, *value, *rest, *beside, cwd=tmp_path)
        assert (done.status, bool(done.out)) == (0, True), done.err


@pytest.mark.parametrize("group", ["launcher", "sweeper"])
def test_its_launchers_and_sweepers_compose(group: str, tmp_path: Path) -> None:
    done = diffuse("--hydra-help", cwd=tmp_path)
    match = re.search(rf"hydra/{group}=(\S+)", done.out)
    assert match
    for name in match[1].split("|"):
        made = diffuse("--cfg", "hydra", f"hydra/{group}={name}", "-p", f"hydra.{group}", cwd=tmp_path)
        assert made.status == 0 and "_target_" in made.out, made.err
