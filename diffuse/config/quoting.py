r"""Quotes overrides for Hydra's grammar, and takes the quotes off again.

In that grammar prompts and paths would need quotes and escapes; here a prompt is taken literally. OmegaConf, too, reads
more than text in a text: `${...}` is looked up, unless it is written `\${...}`, and `???` stands for a missing value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from diffuse.config.embedding import EMBEDDINGS_LIST
from diffuse.config.file_lists import FileList
from diffuse.config.groups import group_options, known_keys
from diffuse.config.hydra_settings import check_hydra_part
from diffuse.config.lora import LORA_LIST
from diffuse.config.mistakes import unknown_field
from diffuse.config.own import SEARCHPATH, own_config, read_searchpath
from diffuse.config.text_lists import is_quoted_list, read_text_list
from diffuse.errors import ConfigError
from diffuse.schema import COMPONENTS, FILE_FIELDS, PROMPT_FIELDS

_MARKS = "???"
OmegaConf.register_new_resolver("diffuse_marks", lambda: _MARKS, replace=True)
_MARKS_RESOLVED = "${diffuse_marks:}"

FILE_LISTS = {each.name: each for each in (LORA_LIST, EMBEDDINGS_LIST)}
"""The fields that list files, by name."""
_TEXTS = frozenset({*PROMPT_FIELDS, "prompt_file", "output.name", "tracking.run_name"})
_PATHS = frozenset(
    {
        *FILE_FIELDS,
        "output.dir",
        *(f"{group}.source" for group in ("model", "refiner")),
        *(f"{group}.{component}.source" for group in ("model", "refiner") for component in COMPONENTS),
        "tracking.uri",
        "tracking.artifact_location",
        "tracking.journal",
        "objective.reference",
        "text_backend.file",
        "text_backend.url",
    }
)
# All jobs of a sweep share these, so a comma in them is no sweep.
_SHARED_PATHS = ("output.dir", "tracking.uri", "tracking.artifact_location", "tracking.journal")
_NAMED_GROUPS = ("scheduler", "memory_profile", "hardware", "tracking", "text_backend")
_OPTION_NAMES = tuple(f"{group}.name" for group in _NAMED_GROUPS)
# What has a `null` of its own inside, or one that is an item of a `choice`.
_BARE_NULL = re.compile(
    r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|\[[^\]]*\]|\{[^}]*\}|([(,]\s*)null(?=\s*[,)])""", re.IGNORECASE
)
_TAGS = re.compile(r"tracking\.tags(\..+)?")  # which may be set without `+`, as a field may
_OPEN = (
    "hydra",
    "tracking.tags",
    "model.request_defaults",
    "model.min_vram_gib",
    "refiner.request_defaults",
)  # keys may be added here

_SWEEP = re.compile(r"\s*(choice|range|interval|glob|shuffle|sort|tag)\s*\(.*\)\s*", re.DOTALL)
# An interpolation outside quotes, or a text in quotes, as Hydra's grammar has them.
_QUOTED = re.compile(r"""\$\{[^}]+\}|(?P<quote>["'])(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)(?P=quote)""", re.DOTALL)
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=]*)(?P<value>=.*)?", re.DOTALL)


def quote_overrides(overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """Returns overrides as Hydra's grammar takes them.

    A prompt, a file of prompts and a name are taken literally, whatever they hold; in a `sweep`, unless they are an
    explicit one such as `choice(a, b)` or `"a","b"`. A path is quoted too, but `null` and `${...}` keep their meaning
    in it, and in a sweep a comma does, unless all jobs share the path.

    Raises:
        ConfigError: an override adds (`+`) or removes (`~`) a field, or a list of texts cannot be read.
    """
    quoted = []
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        assert match is not None
        sign, key, value = match["sign"], match["key"].strip(), match["value"]
        if (files := FILE_LISTS.get(key.partition(".")[0])) and "." in key:
            files.check_key(key, override, overrides)
        if key == SEARCHPATH and value is not None:
            places = read_searchpath([override.lstrip("+")])
            quoted.append(f"{SEARCHPATH}=[{','.join(map(quote_value, places or ()))}]")
            continue
        if not key and value is not None:
            raise ConfigError(f"{override}: should be NAME=VALUE, or GROUP=OPTION")
        if sign and not _is_open(key) and not (sign == "+" and _is_own_group(key)):
            raise _refuse_sign(sign, key, value)
        if key in _OPTION_NAMES and value is not None:
            group = key.partition(".")[0]
            raise ConfigError(f"{override}: is the name of an option, which {group}=OPTION chooses; write that")
        check_hydra_part(override)
        if _TAGS.fullmatch(key) and value is not None and not sign:
            quoted.append(f"++{override.lstrip()}")
        elif value is None or sign:
            quoted.append(override)
        elif key in _TEXTS and sweep and (_SWEEP.fullmatch(value[1:]) or is_quoted_list(value[1:])):
            listed, texts = value[1:], read_text_list(key, value[1:])
            if texts is not None:
                listed = f"choice({','.join(map(quote_text, texts))})"
            else:
                if is_quoted_list(listed):  # the same sweep as `choice("a","b")`, and so has the same identity
                    listed = f"choice({listed})"
                if "${" in listed or _MARKS in listed:
                    listed = _QUOTED.sub(_escape_quoted, listed)
            quoted.append(f"{key}={listed}")
        elif key in _TEXTS:
            quoted.append(f"{key}={quote_text(value[1:])}")
        elif key in FILE_LISTS:
            quoted.append(f"{key}={_quote_files(FILE_LISTS[key], value[1:], sweep)}")
        elif _is_bare_path(key, value, sweep):
            quoted.append(f"{key}={quote_value(value[1:])}")
        else:
            quoted.append(override)
    for files in FILE_LISTS.values() if sweep else ():
        quoted = _with_file_fields(files, quoted)
    return quoted


def is_listed_source(key: str) -> bool:
    """Tells whether an override's name is that of one file of a list, such as `lora.0.source`."""
    return any(files.is_source(key) for files in FILE_LISTS.values())


def quote_text(text: str) -> str:
    """Returns a text in Hydra's quotes that OmegaConf takes for this very text."""
    return quote_value(escape_text(text))


def _escape_quoted(match: re.Match[str]) -> str:
    if match["quote"] is None:
        return match[0]
    return quote_text(str(OverridesParser.create().parse_override(f"text={match[0]}").value()))


def quote_value(text: str) -> str:
    """Returns a text in Hydra's quotes; `${...}` keeps its meaning."""
    # There a backslash counts twice before a quote and at the end, and once elsewhere.
    return '"' + re.sub(r'(\\*)("|$(?!\n))', lambda match: match[1] * 2 + (r"\"" if match[2] else ""), text) + '"'


def escape_text(text: str) -> str:
    r"""Returns a value that OmegaConf takes for this very text: `\${` stands for `${`, before which backslashes count
    twice."""
    if text == _MARKS:
        return _MARKS_RESOLVED
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def unquote_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns Hydra's overrides as a command line takes them: the inverse of `quote_overrides`."""
    return [_unquote(override) for override in overrides]


def task_overrides(hydra: Any) -> list[str]:
    """Returns the overrides of a job from Hydra's settings, as they were written.

    Where a `${...}` in one leads nowhere, its field says so.
    """
    return cast(list[str], OmegaConf.to_container(hydra.overrides.task, resolve=False))


@lru_cache(1000)  # the jobs of a sweep have most in common
def _unquote(override: str) -> str:
    if (files := FILE_LISTS.get(override.partition("=")[0])) is not None:
        value = OverridesParser.create().parse_override(override).value()
        return f"{files.name}={files.short(value)}" if isinstance(value, list | None) else override
    if override.partition("=")[0] not in _TEXTS | _PATHS:
        return override
    parsed = OverridesParser.create().parse_override(override)
    value = parsed.value()
    if not isinstance(value, str):
        return override
    if parsed.key_or_group in _TEXTS:
        value = _unescape(value)
    return f"{parsed.key_or_group}={value}"


def _unescape(value: str) -> str:
    return _MARKS if value == _MARKS_RESOLVED else re.sub(r"(\\*)\\\$\{", lambda match: match[1][::2] + "${", value)


def _is_bare_path(key: str, value: str, sweep: bool) -> bool:
    """Checks that an override `key` + `value`, which begins with `=`, is a path that is still to be quoted."""
    is_path = key in _PATHS or any(files.is_text(key) for files in FILE_LISTS.values())
    if not is_path or (sweep and key not in _SHARED_PATHS):
        return False
    return value != "=null" and value[1:2] not in ("'", '"')


def _quote_files(files: FileList, text: str, sweep: bool) -> str:
    """Returns a list of files in Hydra's grammar, with all fields by name, so that each of them can be set."""
    if not re.search(r"[\[{'\"$]|^choice\s*\(|^null$", text):  # names of files, whatever they hold
        texts = [each.strip() for each in text.split(",")] if sweep else [text]
        if "," in text and not sweep and _is_sweep(files, text):
            return text  # and Hydra says so
        quoted = ["null" if each == "null" else _in_full(files, each) for each in texts]
        return ",".join(quoted)
    if text.startswith("choice"):  # which takes no null, but the text of it
        text = _BARE_NULL.sub(lambda match: match[0] if match[1] is None else f"{match[1]}'null'", text)
    try:
        parsed = OverridesParser.create().parse_override(f"{files.name}={text}")
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'{files.name}={text}: cannot be read ({reason}); write {files.name}=\'[{{source: "FILE", '
            f"{files.field_example}}}]'"
        ) from None
    value = parsed.value()
    if isinstance(value, ChoiceSweep):
        items = [_plain_value(item) for item in value.list]
        quoted = ["null" if item in (None, "null") else _in_full(files, item) for item in items]
        return ",".join(quoted) if len(quoted) > 1 or quoted == ["null"] else f"choice({quoted[0]})"
    is_files = isinstance(value, list | dict | str) and not (isinstance(value, str) and "${" in value)
    return _in_full(files, value) if is_files else text


def _is_sweep(files: FileList, text: str) -> bool:
    with suppress(HydraException):
        return bool(OverridesParser.create().parse_override(f"{files.name}={text}").is_sweep_override())
    return False


def _with_file_fields(files: FileList, quoted: list[str]) -> list[str]:
    """Returns overrides of which a single value of `lora.0.weight` and its like is within each value of a swept `lora`.

    The configuration that the jobs share has no files, and no place for such a value.
    """
    parse = OverridesParser.create().parse_override
    name = files.name
    own = [line for line in quoted if line.startswith(f"{name}=")]
    fields = [line for line in quoted if line.startswith(f"{name}.")]
    if not own or not fields or not isinstance(swept := parse(own[-1]).value(), ChoiceSweep):
        return quoted
    fixed = [each for each in map(parse, fields) if not each.is_sweep_override()]
    items = []
    for item in map(_plain_value, swept.list):
        config = OmegaConf.create({name: None if item == "null" else item})
        for each in fixed:
            if OmegaConf.select(config, ".".join(each.key_or_group.split(".")[:2])) is not None:
                OmegaConf.update(config, each.key_or_group, _plain_value(each.value()))
        values = OmegaConf.to_container(config)[name]  # type: ignore[call-overload, index]
        items.append("null" if values is None else _in_full(files, values))
    lines = {each.input_line for each in fixed}
    text = ",".join(items) if len(items) > 1 else f"choice({items[0]})"
    return [f"{name}={text}" if line == own[-1] else line for line in quoted if line not in lines]


def _plain_value(value: Any) -> Any:
    """Returns what Hydra's parser has read, with texts in the place of quoted texts."""
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain_value(name)): _plain_value(item) for name, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def _in_full(files: FileList, value: Any) -> str:
    if isinstance(value, dict):
        value = [value]
    return f"[{','.join(_in_braces(each.as_values()) for each in files.read(value))}]"


def _in_braces(values: Mapping[str, Any]) -> str:
    """Returns values by name in Hydra's grammar."""
    items = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            text = _in_braces(value)
        elif isinstance(value, str):
            text = quote_value(value)
        else:
            text = "null" if value is None else repr(value)
        items.append(f"{name}:{text}")
    return f"{{{','.join(items)}}}"


def _is_open(key: str) -> bool:
    return any(key == each or key.startswith((f"{each}.", f"{each}/")) for each in _OPEN)


def _is_own_group(key: str) -> bool:
    """Returns whether a key is a group that only the user's own folders have."""
    group = key.partition("@")[0]
    return group not in known_keys() and any((folder / group).is_dir() for folder in own_config().folders)


def _refuse_sign(sign: str, key: str, value: str | None) -> ConfigError:
    if key not in known_keys():
        return unknown_field(key, f"{sign}{key}{value or ''}")
    if sign == "~":
        if options := group_options(key):
            return ConfigError(
                f"~{key}: a group cannot be removed; choose {key}={'none' if 'none' in options else '|'.join(options)}"
            )
        return ConfigError(f"~{key}: a field cannot be removed; {key}=null leaves it to the model")
    return ConfigError(f"{sign}{key}{value or ''}: the field exists; write {key}{value or '=VALUE'}")
