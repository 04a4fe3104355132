"""The record of a run: everything needed to make its pictures again, as plain JSON values in a fixed order.

It goes into every picture, into the tracking store and into no other place; names and passwords in addresses, and
access tokens, are taken out on the way. Prompts are kept to the letter.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

import diffuse
from diffuse.schema import COMPONENTS, PROMPT_FIELDS, GenerationRequest

_PACKAGE = Path(diffuse.__file__).resolve().parent
_CODE = ("diffuse", "conf")  # what of a checkout decides how a picture comes out
_GIT_SECONDS = 5
_HIDDEN = "***"
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # five times as fast, where PyYAML was built with libyaml

# What every record has, in its order; then `image`, which it is in a file, or `images`, in a run's record.json.
PARTS: dict[str, type | tuple[type, ...]] = {
    "diffuse": str,
    "created": str,
    "config": dict,
    "overrides": list,
    "request": dict,
    "weights": dict,
    "hardware": dict,
    "inputs": dict,
    "determinism": dict,
    "versions": dict,
    "git": (dict, type(None)),
}

_ADDRESS = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(?i)([?&;][\w.-]*(?:token|secret|passw|pwd|key|sig|credential)[\w.-]*=)[^&;#\s]+")
_TOKEN = re.compile(r"\b(hf|gh[opsu]|glpat|sk|xox[bp])[-_][A-Za-z0-9_-]{16,}|(?i:\bBearer\s+)\S{8,}")
_SECRET_KEY = re.compile(r"(?i)(^|_)(token|secret|password|passwd|api_?key|credentials?)$")

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


def of_run(
    config: Any,
    overrides: Sequence[str],
    request: GenerationRequest,
    *,
    weights: Mapping[str, Any],
    hardware: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one run, before any picture is made.

    `config` is the composed configuration (a DictConfig, or a mapping); in the record, its null fields are those of
    `request`, so that it makes the same pictures again. `weights` says what was read: `source`, `revision`, `variant`,
    `sha256`. `hardware` is Hardware.as_record(), `inputs` Inputs.as_record() where the run starts from a picture.
    """
    asked = asdict(request)
    resolved = _without_own_components(resolve(config))
    resolved |= {key: value for key, value in asked.items() if key in resolved}
    if resolved.get("prompt_file"):
        resolved["prompt_file"] = None  # one prompt of the file, which now stands under `prompt`
    record = {
        "diffuse": diffuse.__version__,
        "created": _now(),
        "config": resolved,
        "overrides": list(overrides),
        "request": asked,
        "weights": dict(weights),
        "hardware": dict(hardware),
        "inputs": dict(inputs or {}),
        "determinism": determinism(),
        "versions": versions(),
        "git": git(),
    }
    hidden: dict[str, Any] = redact(plain(record))
    return hidden


def of_like(record: Mapping[str, Any], overrides: Sequence[str], *, seed: int, folder: str) -> dict[str, Any]:
    """The record of a run that differs from the one of `record` in its seed and its folder alone."""
    config, request = record["config"], record["request"]
    return {
        **record,
        "created": _now(),
        "config": {**config, "seed": seed, "output": {**config["output"], "dir": redact(folder, "dir")}},
        "overrides": redact(list(overrides), "overrides"),
        "request": {**request, "seed": seed},
    }


def of_image(record: Mapping[str, Any], index: int, pixels_sha256: str) -> dict[str, Any]:
    """The record of picture `index` (from 0) of a run: what goes into its file."""
    image = {"index": index, "seed": record["request"]["seed"] + index, "pixels_sha256": pixels_sha256}
    return {**record, "image": image}


def of_images(record: Mapping[str, Any], images: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The run's own `record.json`, once its pictures are made: with the `image` part of each of their records."""
    return {**record, "images": [dict(image) for image in images]}


def text(record: Mapping[str, Any]) -> str:
    """The record as indented JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def yaml_text(values: Any) -> str:
    """Part of a record as YAML, a prompt's `${` included, which is text here."""
    try:
        return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    except UnicodeEncodeError:  # libyaml takes no lone surrogate, as in paths that are not UTF-8
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def resolve(config: Any) -> dict[str, Any]:
    """A DictConfig or mapping as nested dictionaries of JSON values, interpolations resolved."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    values: dict[str, Any] = plain(config)
    return values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _without_own_components(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the sources of those components that are the checkpoint's own: they are all null."""

    def shortened(node: dict[str, Any]) -> dict[str, Any]:
        own = [name for name in COMPONENTS if name in node and not node[name].get("source")]
        return {key: value for key, value in node.items() if key not in own}

    return {key: shortened(value) if key in ("model", "refiner") else value for key, value in config.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key; lists stay values, and an empty mapping is left out."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain(value: Any) -> Any:
    """Any value as what JSON can hold: enumerations by name, other objects as text, NaN and infinities as text too."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        return plain(value.item())
    return str(value)


def redact(value: Any, key: str = "") -> Any:
    """`value` without secrets, and with prompts as they are. `key` is the name it stands under."""
    if isinstance(value, dict):
        return {name: redact(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(item, key) for item in value]
    if not isinstance(value, str) or key in PROMPT_FIELDS:
        return value
    if _SECRET_KEY.search(key):
        return _HIDDEN
    name, equals, rest = value.partition("=")
    if key == "overrides" and equals:
        last = name.lstrip("+~").rpartition(".")[2]
        return f"{name}={redact(rest, last)}"
    return _without_secrets(value)


@lru_cache(4096)  # the jobs of a sweep say much the same
def _without_secrets(text: str) -> str:
    text = _ADDRESS.sub(f"{_HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<1>{_HIDDEN}", text)
    return _TOKEN.sub(_HIDDEN, text)


def determinism() -> dict[str, Any]:
    """What torch has been told, and the environment variables it listens to. Imports torch."""
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


def versions() -> dict[str, str]:
    """Python, and by name every installed distribution that diffuse needs, directly or through another."""
    global _versions
    if _versions is None:
        found = _installed(_requirements())
        _versions = {"python": platform.python_version(), **dict(sorted(found.items()))}
    return dict(_versions)


def _requirements() -> list[str]:
    """What diffuse declares that it needs: as installed, or in the checkout that it runs from uninstalled."""
    try:
        return importlib.metadata.requires("diffuse") or []
    except importlib.metadata.PackageNotFoundError:
        project = _PACKAGE.parent / "pyproject.toml"
        if not project.is_file():
            return []
        declared: list[str] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        return declared


def _installed(requirements: Iterable[str]) -> dict[str, str]:
    from packaging.requirements import InvalidRequirement, Requirement

    found: dict[str, str] = {}
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
            if name not in found:
                found[name], needs[name] = _metadata(needed.name)
        except (InvalidRequirement, importlib.metadata.PackageNotFoundError):
            continue
        more = {(line, wanted) for wanted in {"", *needed.extras} for line in needs[name]} - seen
        seen |= more
        waiting |= more
    return found


def _metadata(name: str) -> tuple[str, list[str]]:
    """Version and requirements of a distribution. importlib parses the README in there each time it is asked."""
    distribution = importlib.metadata.distribution(name)
    head = (distribution.read_text("METADATA") or "").replace("\r\n", "\n").partition("\n\n")[0]
    version = re.search(r"^Version: *(.+)$", head, re.MULTILINE)
    if not version:  # not the layout of a wheel
        return distribution.version, distribution.requires or []
    return version[1].strip(), re.findall(r"^Requires-Dist: *(.+)$", head, re.MULTILINE)


@cache
def git() -> dict[str, Any] | None:
    """The commit that this code is at, and whether `diffuse/` and `conf/` are as committed; None where nobody knows.

    Asked once: what happens to the files later does not change the code that runs.
    It is known where the package runs from its own checkout, and where pip installed it from a repository.
    """
    return _checkout(_PACKAGE) or _installed_from()


def _checkout(package: Path) -> dict[str, Any] | None:
    if not (package.parent / ".git").exists():  # an enclosing repository, around a virtual environment, is another's
        return None
    command = ["git", "-C", str(package.parent), "status", "--porcelain=v2", "--branch", "--", *_CODE]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command,
            env=kept | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    head = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", done.stdout, re.MULTILINE)
    if not head:
        return None
    changed = any(line and not line.startswith("#") for line in done.stdout.splitlines())
    return {"commit": head[1], "clean": not changed}


def _installed_from() -> dict[str, Any] | None:
    """PEP 610: what pip wrote down when it installed from a version control system."""
    try:
        origin = json.loads(importlib.metadata.distribution("diffuse").read_text("direct_url.json") or "{}")
        commit = origin["vcs_info"]["commit_id"]
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    return {"commit": str(commit), "clean": True}
