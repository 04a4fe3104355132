"""The environment in a record: versions, determinism settings, and the commit of the code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import smoke

import diffuse
from diffuse.config.groups import conf_dir
from diffuse.media.load import read_record

PACKAGE = Path(diffuse.__file__).resolve().parent


def test_the_versions_of_everything_that_is_needed(made: dict[str, Any]) -> None:
    versions = made["versions"]
    assert versions["python"] == sys.version.split()[0]
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        for requirement in tomllib.loads(project.read_text())["project"]["dependencies"]:
            name = re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")
            assert versions[name] == importlib.metadata.version(name), name
    # What those need in their turn; and nothing that only the tests need.
    assert {"antlr4-python3-runtime", "sqlalchemy", "markupsafe"} <= set(versions)
    assert not {"pytest", "ruff", "diffusers", "hypothesis", "diffuse"} & set(versions)
    assert made["diffuse"] == diffuse.__version__


def test_the_hardware_and_the_determinism_settings(made: dict[str, Any]) -> None:
    assert made["hardware"]["device"] == "cpu"
    assert made["hardware"]["dtypes"] == dict.fromkeys(("text_encoder", "unet", "vae"), "float32")
    assert made["hardware"]["memory_profile"]["name"] == "cpu_only"
    assert made["determinism"]["threads"] == 1
    assert made["determinism"]["deterministic_algorithms"] is False
    names = {"cudnn_deterministic", "cudnn_benchmark", "cudnn_allow_tf32", "matmul_allow_tf32", "environment"}
    assert names <= set(made["determinism"])


def test_strict_determinism_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    try:
        (path,) = smoke("hardware.deterministic=strict", "output.dir=out", cwd=tmp_path).paths
        found = read_record(tmp_path / path)
        assert found["determinism"]["deterministic_algorithms"] is True
        assert found["determinism"]["environment"]["MKL_NUM_THREADS"] == "1"
        assert found["config"]["hardware"]["deterministic"] == "strict"
    finally:
        smoke("output.dir=out", cwd=tmp_path)  # which is relaxed again
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, Callable[..., Any]]:
    """A checkout of the package in a repository of its own, and `git` in it."""
    root = tmp_path / "checkout"
    shutil.copytree(PACKAGE, root / "diffuse", ignore=shutil.ignore_patterns("checkpoint", "__pycache__", "conf"))
    shutil.copytree(conf_dir(), root / "conf")

    def git(*arguments: str) -> str:
        named = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(root), *named, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (root / ".gitignore").write_text("__pycache__\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    return root, git


def known_to(root: Path, **env: str) -> Any:
    """What a process that runs the code in `root` says of its commit."""
    code = "import json, diffuse.record.environment as e; print(json.dumps([e.__file__, e.git_commit()]))"
    env = {**os.environ, "PYTHONPATH": str(root), **env}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    file, found = json.loads(done.stdout)
    assert Path(file).is_relative_to(root)
    return found


def test_the_commit_and_whether_the_code_is_as_committed(checkout: tuple[Path, Callable[..., Any]]) -> None:
    root, git = checkout
    commit = git("rev-parse", "HEAD")
    (root / "notes.txt").write_text("decides no picture")
    assert known_to(root, GIT_DIR="/nowhere") == {"commit": commit, "clean": True}
    with (root / "conf" / "config.yaml").open("a") as file:
        file.write("\n# changed\n")
    assert known_to(root) == {"commit": commit, "clean": False}


def test_a_folder_that_is_no_checkout_has_no_commit(checkout: tuple[Path, Callable[..., Any]], tmp_path: Path) -> None:
    """A repository around it, as around a virtual environment, is another's."""
    root, _ = checkout
    (root / "site").mkdir()
    shutil.move(root / "diffuse", root / "site" / "diffuse")
    assert known_to(root / "site") is None
    shutil.rmtree(root / ".git")
    shutil.move(root / "site" / "diffuse", root / "diffuse")
    assert known_to(root) is None
