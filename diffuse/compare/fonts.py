"""Text on sheets: DejaVu Sans, which matplotlib ships and which has most of the world's alphabets."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

_FILE = ("mpl-data", "fonts", "ttf")


@cache
def font(size: int, *, bold: bool = False) -> Any:
    """A font of that many pixels. Matplotlib itself is not imported."""
    found = importlib.util.find_spec("matplotlib")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place, *_FILE, "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def wrapped(text: str, width: int, size: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of `width` pixels; what is left over becomes an ellipsis."""
    face = font(size)
    found: list[str] = []
    line = ""
    for word in " ".join(text.split()).split(" "):
        for piece in _pieces(word, width, face):
            longer = f"{line} {piece}" if line else piece
            if line and face.getlength(longer) > width:
                found.append(line)
                line = piece
            else:
                line = longer
        if len(found) > lines:
            break
    found.append(line)
    if len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and face.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*found[: lines - 1], f"{last.rstrip()}…"]


def _pieces(word: str, width: int, face: Any) -> list[str]:
    """A word, cut where it is longer than a line."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and face.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
