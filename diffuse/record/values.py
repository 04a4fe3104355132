"""Plain values: configuration and results as nested dictionaries of JSON values, those as text, and without secrets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

import yaml
from omegaconf import OmegaConf

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # five times as fast, where PyYAML was built with libyaml
_LITERAL = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
_HIDDEN = "***"
_ADDRESS = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(?i)([?&;][\w.-]*(?:token|secret|passw|pwd|key|sig|credential)[\w.-]*=)[^&;#\s]+")
_TOKEN = re.compile(r"\b(hf|gh[opsu]|glpat|sk|xox[bp])[-_][A-Za-z0-9_-]{16,}|(?i:\bBearer\s+)\S{8,}")
_IN_BRACES = re.compile(
    r"(?i)\b(\w*(?:token|secret|password|passwd|api_?key|credentials?)['\"]?\s*:\s*)(\"[^\"]*\"|'[^']*'|[^,}\]\s]+)"
)
_WORDS = "embedding"  # whose `token` is a word for prompts
_SECRET_KEY = re.compile(r"(?i)(^|_)(token|secret|password|passwd|api_?key|credentials?)$")


def indented_json(values: Mapping[str, Any]) -> str:
    """Returns JSON values as indented text."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def yaml_text(values: Any) -> str:
    """Returns JSON values as YAML. `${` in a prompt is plain text."""
    try:
        return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    except UnicodeEncodeError:  # libyaml takes no lone surrogate, as in paths that are not UTF-8
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def resolved_values(config: Any) -> dict[str, Any]:
    """Returns a DictConfig or mapping as nested dictionaries of JSON values, with interpolations resolved."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    values: dict[str, Any] = json_values(config)
    return values


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, by dotted key; lists stay values, and an empty mapping is left out."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def json_values(value: Any) -> Any:
    """Returns any value as JSON values: enumerations by name; other objects, NaN and infinities as text."""
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else str(json_values(key)): json_values(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((json_values(item) for item in value), key=str)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
        return json_values(value.item())
    return str(value)


def short_text(value: Any) -> str:
    """Returns a value as one line of at most 60 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def redact(value: Any, key: str = "") -> Any:
    """Returns `value` without secrets, and with prompts as they are.

    Args:
        value: strings, lists and dictionaries of them, or anything else, which stays as it is.
        key: the name that the value has.
    """
    if isinstance(value, dict):
        is_word = key == _WORDS
        return {name: item if is_word and name == "token" else redact(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(item, key) for item in value]
    if not isinstance(value, str) or key in _LITERAL:
        return value
    if _SECRET_KEY.search(key):
        return _HIDDEN
    name, equals, rest = value.partition("=")
    if key == "overrides" and equals:
        path = name.lstrip("+~").split(".")
        if path[0] == _WORDS:
            return value if path[-1] == "token" else f"{name}={_without_secrets(rest)}"
        if rest.lstrip().startswith(("{", "[")):
            rest = _IN_BRACES.sub(rf"\g<1>{_HIDDEN}", rest)
        return f"{name}={redact(rest, path[-1])}"
    return _without_secrets(value)


@lru_cache(4096)  # the jobs of a sweep say much the same
def _without_secrets(text: str) -> str:
    text = _ADDRESS.sub(f"{_HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<1>{_HIDDEN}", text)
    return _TOKEN.sub(_HIDDEN, text)
