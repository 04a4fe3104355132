"""Reads lists of texts in a sweep: `"a cat, small","a dog"` and `choice(...)`, also with marks that Hydra's grammar has
no place for, such as an apostrophe, a bracket or an accent outside quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from diffuse.errors import ConfigError

_CHOICE = re.compile(r"\s*choice\s*\((.*)\)\s*", re.DOTALL)
_QUOTES = "'\""
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_AFTER_QUOTE = re.compile(r"\s*(,|$)")


@dataclass(frozen=True)
class _Item:
    text: str
    is_quoted: bool
    end: int  # of the item and its comma
    has_comma: bool


def is_quoted_list(value: str) -> bool:
    """Returns whether a value is nothing but two quoted texts or more, with commas between."""
    items = list(_items(value, quoted_only=True))
    return len(items) > 1 and all(item.is_quoted for item in items)


def read_text_list(key: str, value: str) -> list[str] | None:
    """Returns the texts of a quoted list or of `choice(...)`; None where Hydra's grammar reads the list itself.

    Raises:
        ConfigError: a text is empty without quotes, or its quotes do not match.
    """
    try:
        OverridesParser.create().parse_override(f"{key}={value}")
        return None
    except HydraException:
        pass
    match = _CHOICE.fullmatch(value)
    if match is None and not is_quoted_list(value):
        return None
    items = list(_items(value if match is None else match[1], quoted_only=match is None))
    where = f"{key}={value}"
    if items and items[-1].has_comma:
        raise ConfigError(f"{where}: nothing follows the last comma; leave the comma out, or quote a text that has it")
    for item in items:
        if not item.is_quoted and not item.text:
            raise ConfigError(f'{where}: a text is empty; write "" for an empty one')
        if not item.is_quoted and item.text.count('"') % 2:
            raise ConfigError(f"{where}: a quote is not closed; put each text in quotes, and \\ before a quote in it")
    return [item.text for item in items]


def _items(text: str, quoted_only: bool) -> Iterator[_Item]:
    """Yields the texts between the commas. Stops at what is not quoted if `quoted_only`, with an item that says so."""
    position = 0
    while position < len(text):
        item = _quoted_item(text, position) or _plain_item(text, position)
        yield item
        if quoted_only and not item.is_quoted:
            return
        position = item.end


def _quoted_item(text: str, position: int) -> _Item | None:
    start = position + len(text[position:]) - len(text[position:].lstrip())
    quote = text[start : start + 1]
    if not quote or quote not in _QUOTES:
        return None
    index = start + 1
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        if text[index] == quote:
            if after := _AFTER_QUOTE.match(text, index + 1):
                inner = re.sub(rf"(\\*)\\{quote}", lambda match: match[1][::2] + quote, text[start + 1 : index])
                return _Item(inner, True, after.end(), after[1] == ",")
            if not (text[index - 1].isalnum() and text[index + 1].isalnum()):
                return None  # not an apostrophe within a word
        index += 1
    return None


def _plain_item(text: str, position: int) -> _Item:
    depth = 0
    for index in range(position, len(text)):
        depth = max(depth + _BRACKETS.get(text[index], 0), 0)
        if text[index] == "," and not depth:
            return _Item(text[position:index].strip(), False, index + 1, True)
    return _Item(text[position:].strip(), False, len(text), False)
