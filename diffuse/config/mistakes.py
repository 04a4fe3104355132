"""Turns what Hydra and OmegaConf raise into a ConfigError of one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from diffuse.config.groups import GROUPS, default_values, group_options, known_keys, own_groups, sampler_options
from diffuse.config.interpolations import explain_interpolation
from diffuse.config.other_names import field_meant, sampler_meant
from diffuse.config.own import own_config
from diffuse.config.own_files import find_own_file, marked_message
from diffuse.errors import ConfigError, raised_in

_DEFAULTS = re.compile(
    r"Multiple values for (\S+?)\.|You must specify '([^']+)'|Could not override '([^']+)'\. No match|"
    r"Could not override '(\w+@[^']+)'\.|"
    r"^(\S+) appears more than once"
)  # what Hydra says of an entry of the defaults
_SHOWN = 80  # characters of an override
_NO_NAMES = ("true", "false", "null", "nan", "inf")
_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


@contextmanager
def explain_errors(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise in the block into a ConfigError of one line.

    Args:
        overrides: those that the block composes, so that the line can name the wrong one.
    """
    try:
        with name_own_places():
            yield
    except yaml.YAMLError as error:
        raise ConfigError(marked_message(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError, RuntimeError) as error:
        is_known = isinstance(error, HydraException | OmegaConfBaseException)
        if not is_known and not raised_in(error, "hydra", "omegaconf"):  # no mistake of the user's
            raise
        explained = _shape_mistake(str(error)) or f"{_place(error)}{_explain(error, overrides)}"
        raise ConfigError(explained) from error


@contextmanager
def name_own_places() -> Iterator[None]:
    """Names the file and the line in an error about a field that the user's own files set."""
    try:
        yield
    except ConfigError as error:
        named = re.match(r"([a-z]\w*(?:\.\w+)*)(?:[=:]| is )", str(error))
        place = own_place(named[1], named[1].endswith("._target_")) if named else ""
        if named and not place and named[1] not in own_config().names:  # the model's own default may be wrong
            models = (f"{group}.request_defaults.{named[1]}" for group in ("refiner", "model"))
            place = next(filter(None, map(own_place, models)), "")
        if not place:
            raise
        raise ConfigError(f"{place}{error}") from error


def own_place(key: str | None, is_missing: bool = False) -> str:
    """Returns `FILE:LINE: ` of the user's file that sets a field; empty where none does, or an override goes before it.

    Args:
        key: the field's dotted name.
        is_missing: takes a file that should set it, too.
    """
    own = own_config()
    if not key or key in own.names:
        return ""
    for file in own.files.values():
        if (line := file.line(key)) is not None:
            return f"{file.path}:{line}: "
    group = key.rpartition(".")[0]
    return next((f"{file.path}: " for file in own.files.values() if is_missing and file.package == group != ""), "")


def _place(error: Exception) -> str:
    """Returns `FILE:LINE: ` of the user's file that an error of composing is about; empty where it is an override."""
    own = own_config()
    message = f"{error}\n{error.__cause__ or ''}"
    if (
        not own.folders
        or isinstance(error, OverrideParseException)
        or re.search(r"merging override|Could not append", message)
    ):
        return ""
    entries = [(file, each) for file in own.files.values() for each in file.defaults()]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.replace("\\", "/").rpartition("/")
        found = [(file, each) for file, each in entries if (each.group, each.option) == (group, option)]
        return f"{found[0][0].path}:{found[0][1].line}: " if found else ""
    if match := _DEFAULTS.search(message):
        group = next(filter(None, match.groups())).partition("@")[0]
        found = [(file, each) for file, each in entries if each.group in (group, f"{file.group}/{group}".lstrip("/"))]
        if found:
            return f"{found[-1][0].path}:{found[-1][1].line}: "
    key = re.search(r"full_key: (\S+)", message) or re.search(r"(hydra\.searchpath)", message)
    if key and (place := own_place(key[1])):
        return place
    if (named := re.search(r"(?:In '|defined in )([^'\s]+)", message)) and (
        path := find_own_file(own.folders, named[1])
    ):
        return f"{path}: "
    return ""


def _shape_mistake(message: str) -> str:
    """Returns a line about a value of the user's files that is a list, or a text, in place of `NAME: VALUE` lines."""
    named = re.match(r"In '([^']+)': \w+ raised while composing config:", message)
    file = own_config().files.get(named[1]) if named else None
    for key, node, line in [] if file is None else file.entries():
        known: Any = {"hydra": {}, **default_values()}
        for part in key.split("."):
            known = known.get(part) if isinstance(known, dict) else None
        fault = ""
        if isinstance(known, dict) and not isinstance(node, yaml.MappingNode):
            fault = "should be NAME: VALUE lines, indented below it"
        elif isinstance(known, list) and not isinstance(node, yaml.SequenceNode):
            fault = "should be a list, such as [A,B]"
        if fault and file is not None:
            return f"{file.path}:{line}: {key}: {fault}"
    return ""


def suggestion(name: str, names: Sequence[str], otherwise: str = "") -> str:
    """Returns a clause that suggests the nearest of `names`, or else says `otherwise`.

    Fields at the root go before others.
    """
    if alike := [known for known in names if known.lower() == name.lower()]:
        return f"; did you mean {alike[0]}?"
    last = name.rpartition(".")[2]
    tails = {known.rpartition(".")[2]: known for known in reversed(names)}
    near = (
        get_close_matches(name, names, 1, 0.75)
        or [known for known in names if "." not in known and name in known.split("_")][:1]
        or ([tails[last]] if last in tails else [])
        or get_close_matches(name, [known for known in names if "." not in known], 1, 0.55)
        or [known for tail, known in tails.items() if len(last) > 2 and last in tail][-1:]
        or [tails[tail] for tail in get_close_matches(last, list(tails), 1)]
    )
    return f"; did you mean {near[0]}?" if near else (f"; {otherwise}" if otherwise else "")


def unknown_field(key: str, override: str) -> ConfigError:
    """Returns the error for an override of a field that does not exist."""
    # An option's own name and class are not for the user to set.
    names = [known for known in known_keys() if known == "output.name" or not known.endswith((".name", "._target_"))]
    names.remove("suite")  # which an experiment sets
    option = key.removeprefix("scheduler.")
    samplers = sampler_options().get(option, [])
    if samplers and (option != key or f"scheduler.{option}" not in names):
        fault = "the sampler has no such option" if option != key else f"there is no field {key}"
        have = "has one" if len(samplers) == 1 else "have one"
        then = "" if option != key else f"; with one of them write scheduler.{override.lstrip('+~')}"
        return ConfigError(f"{override}: {fault}; scheduler={'|'.join(samplers)} {have}{then}")
    names += [f"scheduler.{each}" for each in sampler_options() if f"scheduler.{each}" not in names]
    if key.startswith(("lora.", "embedding.")):
        number = ".".join(key.split(".")[:2])
        if ".blocks" in key:
            example = f"lora='[{{source: FILE, blocks: {{{key.partition('.blocks.')[2] or 'mid_block'}: 1}}}}]'"
            return ConfigError(f"{override}: {number} has no such part yet; name it with the file, as in {example}")
        example = "lora=FILE:0.8" if key.startswith("lora.") else "embedding=FILE"
        return ConfigError(f"{override}: there is no {number}; say which file, as in {example}")
    near = suggestion(key, names, "diffuse --help lists them")
    if own := get_close_matches(key, own_groups(), 1, 0.7):
        near = f"; did you mean +{own[0]}?"
    elif meant := field_meant(key):
        near = f"; did you mean {meant}?"
    if key.startswith("hydra."):
        near = "; diffuse --cfg hydra prints those of Hydra"
    return ConfigError(f"{override}: there is no field or group {key}{near}")


def plain_message(message: str) -> str:
    """Returns the first line of a message of OmegaConf, in the words of a user."""
    line = explain_interpolation(message)
    if match := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", line):
        dashed = re.fullmatch(r"(\d+)\s*-\s*(\d+)", match[1])
        hint = f"; for a sweep write range({dashed[1]},{int(dashed[2]) + 1})" if dashed else ""
        return f"{match[1]!r} is not {_KINDS.get(match[2], match[2])}{hint}"
    if match := re.search(r"Value '(.*)' is not a valid bool", line):
        return f"{match[1]!r} is not true or false"
    if "Incompatible value 'None'" in line:
        return "cannot be null"
    if "is not a ListConfig, list or tuple" in line:
        return "should be a list, such as [A,B]"
    if match := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", line):
        return f"{match[1]!r} is none of {match[2]}{_near_choice(match[1], match[2].split(', '))}"
    return line


def _near_choice(value: str, choices: Sequence[str]) -> str:
    """Returns a clause that suggests the nearest of few choices, of which most have nothing to do with the value."""
    by_letters = {choice.lower(): choice for choice in choices}
    near = get_close_matches(value.lower(), by_letters, 1, 0.6)
    return f"; did you mean {by_letters[near[0]]}?" if near else ""


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.replace("\\", "/").rpartition("/")
        known = list(error.options or group_options(group))
        meant = sampler_meant(name, known) if group == "scheduler" else None
        near = f"; did you mean {meant}?" if meant else suggestion(name, known)
        if not known:
            hint = f"; write `override /{group.rpartition('/')[2]}: {name}`" if "/" in group else ""
            return ConfigError(f"{group}={name}: there is no group {group}{hint}")
        for folder in own_config().folders:
            if (other := folder / group / f"{name}.yml").is_file():
                near = f"; rename {other} to {name}.yaml"
        return ConfigError(f"{group}={name}: there is no such {group}{near} (there are {', '.join(known)})")
    message = f"{error}\n{error.__cause__ or ''}"
    if match := _DEFAULTS.search(message):
        return _explain_default(next(filter(None, match.groups())).partition("@")[0], message, overrides)
    if isinstance(error, OverrideParseException):
        if "NoneType is incompatible" in message and re.search(r"=\s*choice", str(error.override)):
            return ConfigError(f"{_shortened(error.override)}: choice(...) takes no null; write NAME=null,VALUE")
        return ConfigError(
            f"{_shortened(error.override)}: cannot be read; write NAME=VALUE, and quote a VALUE that has special "
            "characters"
        )
    if match := re.search(r"Ambiguous value for argument '(.*?)'\n", message, re.DOTALL):
        return ConfigError(f"{_shortened(match[1])}: has several values; diffuse -m makes a sweep over them")
    if match := re.search(r"Sweep parameters '(.*?)' requires", message, re.DOTALL):
        return ConfigError(f"{_shortened(match[1])}: is a sweep; diffuse -m makes it")
    if match := re.search(r"Key '([^']*)' (?:is )?not in '?[A-Za-z]*'?", message):
        return _explain_unknown(match[1], message, overrides)
    if match := re.search(r"Error resolving interpolation '(.*?)', possible interpolation keys: ", message, re.DOTALL):
        return _explain_option(next((each for each in overrides if each.endswith(f"={match[1]}")), match[1]))
    if "Config group override" in message:  # is no name
        return _explain_option(next(filter(_is_no_option, overrides), None))
    return _explain_value(message)


def _is_no_option(override: str) -> bool:
    group, _, value = override.lstrip("+").partition("=")
    is_group = group in ("", *GROUPS, *own_groups()) or "/" in group
    names = [name.strip().lower() for name in value.split(",")]
    return is_group and any(not re.match(r"[a-z_]", name) or name in _NO_NAMES for name in names)


def _explain_option(override: str | None) -> ConfigError:
    """Explains that a group was set to what names no option."""
    group = (override or "").lstrip("+").partition("=")[0]
    known = ", ".join(group_options(group)) if group else ""
    there = f"; there are {known}" if known else ""
    return ConfigError(f"{_shortened(override or 'GROUP=OPTION')}: should be NAME=VALUE, or GROUP=OPTION{there}")


def _explain_default(group: str, message: str, overrides: Sequence[str]) -> ConfigError:
    """Explains what is wrong with the entry of a group in a file's defaults."""
    if "You must specify" in message:
        options = group_options(group)
        return ConfigError(f"{group} is not chosen; add {group}={'|'.join(options) or 'OPTION'}")
    if "Could not override" in message:
        typed = next((each for each in overrides if each.partition("=")[0] == group), None)
        if typed is not None and group in own_groups():
            return ConfigError(f"{_shortened(typed)}: is a group of your own files, which is added: write +{typed}")
        known_group = group.partition("@")[0]
        if known_group in GROUPS:  # overridden in a file of another group, below which it is then looked for
            there = f"write `override /{known_group}@_global_.{known_group}: OPTION` there"
            return ConfigError(f"the defaults of a file override {known_group}, which is not below it; {there}")
        near = suggestion(group, GROUPS, f"there are {', '.join(GROUPS)}")
        return ConfigError(f"the defaults override {group}, and there is no such group{near}")
    return ConfigError(f"{group} is chosen twice; write `override /{group}: OPTION` in the defaults of a file")


def _explain_unknown(key: str, message: str, overrides: Sequence[str]) -> ConfigError:
    full = re.search(r"Could not override '([^']*)'", message) or re.search(r"full_key: (\S+)", message)
    name = full[1] if full else key
    if name in known_keys() and name.rpartition(".")[2] != key:  # a mapping was given, and a key in it is wrong
        name = f"{name}.{key}"
    return unknown_field(name, next((_shortened(each) for each in overrides if each.startswith(f"{name}=")), name))


def _explain_value(message: str) -> ConfigError:
    if match := re.search(r"Error merging override (.*?)\n.*is not Optional", message, re.DOTALL):
        return ConfigError(f"{_shortened(match[1])}: cannot be null")
    if match := re.search(r"Error merging override ([+]*([^=]*)=.*)", message):
        fields = [known for known in known_keys() if known.startswith(f"{match[2]}.")]
        if fields:
            return ConfigError(
                f"{_shortened(match[1])}: {match[2]} has fields; set one of them, such as {fields[0]}=VALUE"
            )
        typed = match[1].removeprefix("++")  # which `quote_overrides` puts before a tag
        if "Cannot assign" in message or "DictConfig with ListConfig" in message:
            is_list = "reference_type=Optional[List" in message or "reference_type=List" in message
            advice = f"should be a list; write {match[2]}=[VALUE,VALUE]" if is_list else _by_name(match[2])
            return ConfigError(f"{_shortened(typed)}: {advice}")
    if match := re.search(r"Error merging override ~([^=\s]+)\n", message):
        return ConfigError(f"~{match[1]}: cannot be removed; set its fields to what you want")
    if match := re.search(r"(Value|Invalid value|Cannot convert|Incompatible|Object of unsupported)[^\n]*", message):
        merging = re.search(r"Error merging override (.*?)(\n|$)", message)
        key = re.search(r"full_key: (\S+)", message)
        where = _shortened(merging[1]) if merging else key[1] if key else ""
        return ConfigError(f"{where}: {plain_message(match[0])}" if where else plain_message(match[0]))
    if match := re.search(r"Could not (?:append|override)[^\n]*", message):
        return ConfigError(plain_message(match[0]))
    return ConfigError(plain_message(re.sub(r"^In '[^']+':( \w+ raised while composing config:)?\s*", "", message)))


def _by_name(name: str) -> str:
    return f"it has names and values; set one of them, as {name}.NAME=VALUE"


def _shortened(override: str | None) -> str:
    text = " ".join((override or "").split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
