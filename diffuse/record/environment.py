"""Environment of a run: determinism settings, versions of the libraries, and the commit of the code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import diffuse

_PACKAGE = Path(diffuse.__file__).resolve().parent
_CODE = ("diffuse", "conf")  # the folders of a checkout that decide how an image comes out
_GIT_SECONDS = 5
_FRESH_SECONDS = 60
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")

# Variables that change how numbers are computed.
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
)


def determinism_settings() -> dict[str, Any]:
    """Returns torch's settings and the environment variables that it reads. Imports torch."""
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "mkldnn_deterministic": torch.backends.mkldnn.deterministic,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


_versions: dict[str, str] | None = None


def library_versions() -> dict[str, str]:
    """Returns the version of Python, and by name of each installed distribution that diffuse needs, directly or not."""
    global _versions
    if _versions is None:
        _versions = {"python": platform.python_version(), **dict(sorted(_installed(_requirements()).items()))}
    return dict(_versions)


def _requirements() -> list[str]:
    """Returns the requirements that diffuse declares: as installed, or in the checkout that it runs from."""
    try:
        return importlib.metadata.requires("diffuse") or []
    except importlib.metadata.PackageNotFoundError:
        project = _PACKAGE.parent / "pyproject.toml"
        if not project.is_file():
            return []
        declared: list[str] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        return declared


def _installed(requirements: Iterable[str]) -> dict[str, str]:
    """Returns the versions of the installed distributions that `requirements` name, and of theirs in turn."""
    from packaging.requirements import InvalidRequirement, Requirement

    installed: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    waiting = {(line, "") for line in requirements}
    seen = set(waiting)
    while waiting:
        line, extra = waiting.pop()
        optional = _EXTRA.findall(line)
        if optional and extra not in optional:  # most lines are of this kind, and taking them apart costs time
            continue
        try:
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            name = re.sub(r"[-_.]+", "-", needed.name).lower()
            if name not in installed:
                installed[name], needs[name] = _metadata(needed.name)
        except (InvalidRequirement, importlib.metadata.PackageNotFoundError):
            continue
        more = {(line, each) for each in {"", *needed.extras} for line in needs[name]} - seen
        seen |= more
        waiting |= more
    return installed


def _metadata(name: str) -> tuple[str, list[str]]:
    """Returns version and requirements of a distribution. importlib would parse the README in there on each call."""
    distribution = importlib.metadata.distribution(name)
    head = (distribution.read_text("METADATA") or "").replace("\r\n", "\n").partition("\n\n")[0]
    version = re.search(r"^Version: *(.+)$", head, re.MULTILINE)
    if not version:  # not the layout of a wheel
        return distribution.version, distribution.requires or []
    return version[1].strip(), re.findall(r"^Requires-Dist: *(.+)$", head, re.MULTILINE)


@cache
def git_commit() -> dict[str, Any] | None:
    """Returns the commit of this code, and whether `diffuse/` and `conf/` are as committed; None if it is unknown.

    It is known where the package runs from its own checkout, and where pip installed it from a repository. It is found
    out once a process: later changes of the files do not change the code that runs.
    """
    return _checkout(_PACKAGE) or _installed_from()


def user_commit() -> dict[str, Any] | None:
    """Returns the commit of the repository that the working directory is in, and whether its files are as committed.

    Files that are not under version control do not count, such as pictures. It is looked up at most once a minute.
    Returns None where there is no repository, no commit, or no git.
    """
    try:
        folder = Path.cwd()
    except OSError:  # it was deleted
        return None
    return _user_commit(folder, int(time.monotonic() // _FRESH_SECONDS))


@lru_cache(4)
def _user_commit(folder: Path, minute: int) -> dict[str, Any] | None:
    # A repository's own settings may name a program to run here.
    return _status(folder, "-c", "core.fsmonitor=false", options=("--untracked-files=no",))


def _checkout(package: Path) -> dict[str, Any] | None:
    if not (package.parent / ".git").exists():  # an enclosing repository, around a virtual environment, is another's
        return None
    return _status(package.parent, options=("--", *_CODE))


def _status(folder: Path, *settings: str, options: Sequence[str]) -> dict[str, Any] | None:
    """Returns the commit that is checked out in `folder`, and whether nothing differs from it; None if unknown."""
    command = ["git", "-C", str(folder), *settings, "status", "--porcelain=v2", "--branch", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = subprocess.run(
            command,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    head = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", process.stdout, re.MULTILINE)
    if not head:
        return None
    changed = any(line and not line.startswith("#") for line in process.stdout.splitlines())
    return {"commit": head[1], "clean": not changed}


def _installed_from() -> dict[str, Any] | None:
    """Returns the commit that pip recorded when it installed from version control (PEP 610)."""
    try:
        origin = json.loads(importlib.metadata.distribution("diffuse").read_text("direct_url.json") or "{}")
        commit = origin["vcs_info"]["commit_id"]
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    return {"commit": str(commit), "clean": True}
