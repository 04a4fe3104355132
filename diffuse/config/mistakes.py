"""Turns what Hydra and OmegaConf raise into a ConfigError of one line that says what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from diffuse.config.groups import GROUPS, group_options, known_keys
from diffuse.errors import ConfigError

_SHOWN = 80  # characters of an override
_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


@contextmanager
def explain_errors(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise in the block into a ConfigError of one line.

    Args:
        overrides: those that the block composes, so that the line can name the wrong one.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from error
    except ValueError as error:
        if not _is_raised_in_hydra(error):  # no mistake of the user's
            raise
        raise _explain(error, overrides) from error


def _is_raised_in_hydra(error: Exception) -> bool:
    """Returns whether Hydra or OmegaConf raised an error, of a type that anything else may raise too."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("hydra", "omegaconf")


def suggestion(name: str, names: Sequence[str], otherwise: str = "") -> str:
    """Returns a clause that suggests the nearest of `names`, or else says `otherwise`.

    Fields at the root go before others.
    """
    last = name.rpartition(".")[2]
    tails = {known.rpartition(".")[2]: known for known in reversed(names)}
    near = (
        get_close_matches(name, names, 1, 0.75)
        or [known for known in names if "." not in known and name in known.split("_")][:1]
        or get_close_matches(name, [known for known in names if "." not in known], 1, 0.55)
        or ([tails[last]] if last in tails else [])
        or [known for tail, known in tails.items() if len(last) > 2 and last in tail][-1:]
        or [tails[tail] for tail in get_close_matches(last, list(tails), 1)]
    )
    return f"; did you mean {near[0]}?" if near else (f"; {otherwise}" if otherwise else "")


def unknown_field(key: str, override: str) -> ConfigError:
    """Returns the error for an override of a field that does not exist."""
    # An option's own name and class are not for the user to set.
    names = [known for known in known_keys() if known == "output.name" or not known.endswith((".name", "._target_"))]
    near = suggestion(key, names, "diffuse --help lists them")
    return ConfigError(f"{override}: there is no field or group {key}{near}")


def plain_message(message: str) -> str:
    """Returns the first line of a message of OmegaConf, in the words of a user."""
    line = message.strip().splitlines()[0].rstrip(". ")
    if match := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", line):
        dashed = re.fullmatch(r"(\d+)\s*-\s*(\d+)", match[1])
        hint = f"; for a sweep write range({dashed[1]},{int(dashed[2]) + 1})" if dashed else ""
        return f"{match[1]!r} is not {_KINDS.get(match[2], match[2])}{hint}"
    if match := re.search(r"Value '(.*)' is not a valid bool", line):
        return f"{match[1]!r} is not true or false"
    if "is not a ListConfig, list or tuple" in line:
        return "should be a list, such as [A,B]"
    if match := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", line):
        return f"{match[1]!r} is none of {match[2]}{suggestion(match[1], match[2].split(', '))}"
    return line


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.replace("\\", "/").rpartition("/")
        known = list(error.options or group_options(group))
        near = suggestion(name, known)
        return ConfigError(f"{group}={name}: there is no such {group}{near} (there are {', '.join(known)})")
    message = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, OverrideParseException):
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
    if isinstance(error, ValueError):  # a group was set to what is no name
        wrong = [each for each in overrides if each.partition("=")[0] in GROUPS] or [*overrides]
        return ConfigError(f"{_shortened(wrong[0] if wrong else None)}: should be NAME=VALUE, or GROUP=OPTION")
    return _explain_value(message)


def _explain_unknown(key: str, message: str, overrides: Sequence[str]) -> ConfigError:
    full = re.search(r"Could not override '([^']*)'", message) or re.search(r"full_key: (\S+)", message)
    name = full[1] if full else key
    if name in known_keys():  # a mapping was given, and a key in it is wrong
        name = f"{name}.{key}"
    return unknown_field(name, next((_shortened(each) for each in overrides if each.startswith(f"{name}=")), name))


def _explain_value(message: str) -> ConfigError:
    if match := re.search(r"Error merging override (.*?)\n.*is not Optional", message, re.DOTALL):
        return ConfigError(f"{_shortened(match[1])}: cannot be null")
    if match := re.search(r"Error merging override (([^=]*)=.*)", message):
        fields = [known for known in known_keys() if known.startswith(f"{match[2]}.")]
        if fields:
            return ConfigError(
                f"{_shortened(match[1])}: {match[2]} has fields; set one of them, such as {fields[0]}=VALUE"
            )
    if match := re.search(r"(Value|Invalid value|Cannot convert|Incompatible|Object of unsupported)[^\n]*", message):
        merging = re.search(r"Error merging override (.*?)(\n|$)", message)
        key = re.search(r"full_key: (\S+)", message)
        where = _shortened(merging[1]) if merging else key[1] if key else ""
        return ConfigError(f"{where}: {plain_message(match[0])}" if where else plain_message(match[0]))
    if match := re.search(r"Could not (?:append|override)[^\n]*", message):
        return ConfigError(plain_message(match[0]))
    return ConfigError(plain_message(message))


def _shortened(override: str | None) -> str:
    text = " ".join((override or "").split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
