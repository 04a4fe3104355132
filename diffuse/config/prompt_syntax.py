"""Weights in a prompt, as AUTOMATIC1111's web UI has people write them. No torch.

`(word:1.3)` weighs 1.3, `(word)` 1.1 and `[word]` 1 / 1.1; brackets within brackets multiply. `\\(`, `\\)`, `\\[`,
`\\]`, `\\:` and `\\\\` stand for the characters themselves. The web UI takes a bracket that nothing closes for one that
closes at the end, and one that nothing opens for text; both are mistakes here.
"""

from __future__ import annotations

import math
import re
from itertools import groupby
from typing import NamedTuple

from diffuse.errors import ConfigError

UP = 1.1  # the weight of one pair of round brackets
_EXCERPT_CHARACTERS = 40  # characters of a mistake

_OTHER = {"(": ")", "[": "]", ")": "(", "]": "["}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]:\\])"
    r"|(?P<opened>[(\[])"
    r"|(?P<weight>:[^()\[\]:\\]*)?(?P<closed>[)\]])"  # a weight is what stands between the last colon and the bracket
    r"|(?P<text>[^()\[\]:\\]+|.)",
    re.DOTALL,
)


class Part(NamedTuple):
    """A piece of a prompt and its weight; at 1 it is as strong as the model makes it."""

    text: str
    weight: float


def parse_prompt(text: str, name: str = "prompt") -> list[Part]:
    """Splits a prompt into parts without brackets, in order; neighbours of one weight are one part.

    Raises:
        ConfigError: a bracket has no partner, or a weight is no number; the message begins with `name`, the field.
    """
    parts: list[Part] = []
    waiting: list[tuple[str, int, int]] = []  # bracket, where it stands, how many parts come before it
    for token in _TOKEN.finditer(text):
        if token["opened"]:
            waiting.append((token["opened"], token.start(), len(parts)))
        elif closed := token["closed"]:
            partner = _OTHER[closed]
            if not waiting or waiting[-1][0] != partner:
                raise _wrong(name, closed, f"at the end of {_excerpt(text[: token.end()], end=True)} is not opened")
            _, start, first = waiting.pop()
            weight, whole = token["weight"], text[start : token.end()]
            if partner == "[" and weight is not None and not _NUMBER.fullmatch(weight[1:].strip()):
                parts.append(Part(weight, 1.0))
                weight = None
            factor = _factor(partner, weight, whole, name)
            parts[first:] = [Part(part.text, part.weight * factor) for part in parts[first:]]
        else:
            parts.append(Part(token["escaped"] or token["text"], 1.0))
    if waiting:
        bracket, start, _ = waiting[-1]
        raise _wrong(name, bracket, f"of {_excerpt(text[start:])} is not closed")
    if not all(math.isfinite(part.weight) for part in parts):
        raise ConfigError(f"{name}: the weights within one another multiply to more than a number can be; lower them")
    return [
        Part("".join(part.text for part in alike), weight)
        for weight, alike in groupby(parts, key=lambda part: part.weight)
    ]


def _factor(bracket: str, weight: str | None, whole: str, name: str) -> float:
    """Returns the factor by which a pair of brackets, with the text `whole`, multiplies the weight of its content."""
    if weight is None:
        return UP if bracket == "(" else 1 / UP
    written = weight[1:].strip()
    if bracket == "[":
        instead = _excerpt(f"({whole[1:-1]})")
        raise ConfigError(
            f"{name}: {_excerpt(whole)}: square brackets take no weight; write {instead}, or \\: for the colon"
        )
    if not written:
        raise ConfigError(f"{name}: the weight of {_excerpt(whole)} is empty; add a number, or write \\: for the colon")
    value = float(written) if _NUMBER.fullmatch(written) else math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"{name}: the weight of {_excerpt(whole)} is not a finite number, such as 1.3; "
            "write \\: for the colon itself"
        )
    return value


def _wrong(name: str, bracket: str, what: str) -> ConfigError:
    return ConfigError(
        f"{name}: the {bracket} {what}; add the {_OTHER[bracket]}, or write \\{bracket} for the character"
    )


def _excerpt(text: str, end: bool = False) -> str:
    """Returns `text` in quotes and on one line, its beginning or its end if it is long."""
    if len(text) > _EXCERPT_CHARACTERS:
        text = f"...{text[-_EXCERPT_CHARACTERS:]}" if end else f"{text[:_EXCERPT_CHARACTERS]}..."
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"
