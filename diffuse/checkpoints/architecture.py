"""From a published `config.json` to the dataclass of an architecture; whatever is not implemented is refused.

A configuration class is a frozen dataclass whose fields carry the published names. It may declare

- `FIXED`: published keys for which only the listed values are implemented;
- `IGNORED`: published keys that do not change what is computed;
- `SECTION`: the name under which a file of several models holds the settings, where the file has that name at all.

Any other key is a setting that this program does not know. It is accepted only where it is off.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from diffuse.errors import CheckpointError

T = TypeVar("T")

_MOST = 1000  # layers of a kind; building many more would fill the memory before a weight is compared

# What people and tools write into a configuration for other readers.
_NOTES = frozenset(
    """
    author authors citation comment comments copyright credits date description doc docs homepage info license licence
    name_or_path note notes readme remark remarks title todo url website
    """.split()  # noqa: SIM905
)


def without_notes(published: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a published configuration without what is written into it for people.

    That is a key that no program could have as a setting's name, such as `//`, and one that says that it is a comment.
    Keys that begin with an underscore stay: some of them are read.
    """
    return {key: value for key, value in published.items() if not _is_note(key)}


def _is_note(key: str) -> bool:
    words = re.sub(r"[\W\d_]+$", "", key.lower())
    return not key.isidentifier() or words in _NOTES or words.endswith(("_comment", "_note"))


def read_architecture(cls: type[T], published: Mapping[str, Any], file: str) -> T:
    """Builds a `cls` from the settings of a published `config.json`.

    Lists become tuples. Keys that begin with an underscore are bookkeeping and skipped, unless `cls` names them.

    Args:
        cls: the configuration class.
        published: the file's content.
        file: names the file in messages.

    Raises:
        CheckpointError: a value is of the wrong type or not implemented, a needed key is missing, or an unknown
            setting is switched on. The message names the file, the key and the value.
    """
    fixed: Mapping[str, tuple[Any, ...]] = getattr(cls, "FIXED", {})
    ignored: frozenset[str] = getattr(cls, "IGNORED", frozenset())
    section = getattr(cls, "SECTION", None)
    if section is not None and published.get(section) is not None:
        published, file = published[section], f"{file}: {section}"
        if not isinstance(published, Mapping):
            raise CheckpointError(f"{file}={_show(published)} should be an object; the file is damaged")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in published.items():
        if key in ignored or (key.startswith("_") and key not in fixed):
            continue
        if key in fixed:
            if not any(_equal(value, allowed) for allowed in fixed[key]):
                implemented = " or ".join(_show(allowed) for allowed in fixed[key])
                raise CheckpointError(
                    f"{file}: {key}={_show(value)} is not implemented, only {implemented}; use another checkpoint"
                )
        elif key in known:
            try:
                values[key] = _fit(value, hints[key])
                if _is_endless(key, values[key]):
                    raise CheckpointError(
                        f"{file}: {key}={_show(value)} is more than {_MOST}; the file is damaged, or made to fill the "
                        "memory"
                    )
            except TypeError:
                raise CheckpointError(
                    f"{file}: {key}={_show(value)} should be {_describe(hints[key])}; the file is damaged or of "
                    "another kind of model"
                ) from None
        elif not _is_off(value):
            raise CheckpointError(f"{file}: {key}={_show(value)} is not implemented; use another checkpoint")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise CheckpointError(f"{file}: lacks the setting {name}; the file is incomplete")
    return cls(**values)


def _is_endless(key: str, value: Any) -> bool:
    """Tells whether a setting would make more layers, or more levels of them, than any model has."""
    if isinstance(value, tuple):
        return len(value) > _MOST or any(_is_endless(key, item) for item in value)
    return "layers" in key and isinstance(value, int) and value > _MOST


def _is_off(value: Any) -> bool:
    """Tells whether a setting is off: false or nothing, or a list of such for each level."""
    if isinstance(value, list):
        return all(map(_is_off, value))
    return value is None or value is False or value in ("", {})


def _equal(value: Any, allowed: Any) -> bool:
    """Compares two values; a number is not equal to a truth value."""
    if isinstance(value, list):
        value = tuple(value)
    return bool(value == allowed) and isinstance(value, bool) == isinstance(allowed, bool)


def _fit(value: Any, hint: Any) -> Any:
    """Returns `value` as the type `hint` where JSON can only have meant that.

    Raises:
        TypeError: it is of another type.
    """
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for choice in arguments:
            try:
                return _fit(value, choice)
            except TypeError:
                continue
        raise TypeError
    if origin is tuple or hint is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        if not arguments:
            return tuple(value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_fit(item, arguments[0]) for item in value)
        if len(arguments) != len(value):
            raise TypeError
        return tuple(_fit(item, kind) for item, kind in zip(value, arguments, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = origin or hint
    if kind is Mapping or getattr(kind, "__name__", "") == "Mapping":
        kind = dict
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in arguments)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _show(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
