"""Text on sheets and plots, in fonts that have its letters.

Most are in DejaVu Sans, which matplotlib ships and which has most of the world's alphabets. Others come from a font
that is installed. A letter that no font has is written as `\\u6f22`, because an empty box would say nothing.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

_FILE = ("mpl-data", "fonts", "ttf")
_BLANK = ("Zs", "Cf", "Mn")  # kinds of characters that have nothing to draw, or draw on another

_font_files: dict[tuple[bool, str], str] = {}  # (bold, letter) -> the file of a font that has it; "" for none


@cache
def _own(bold: bool) -> str:
    """Returns the file of DejaVu Sans. Matplotlib itself is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], *_FILE, "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def drawable_text(text: str, *, bold: bool = False) -> str:
    """Returns `text` in letters that can be drawn."""
    find_fonts(text, bold=bold)
    return "".join(
        letter if _file(letter, bold) else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def find_fonts(text: str, *, bold: bool = False) -> None:
    """Finds fonts for the letters of `text`, which is quicker for many than for one after the other."""
    missing = {letter for letter in text if not _is_plain(letter) and (bold, letter) not in _font_files}
    for file in _files(bold) if missing else ():
        having = _having(file, missing)
        _font_files.update({(bold, letter): file for letter in having})
        missing -= having
        if not missing:
            return
    _font_files.update({(bold, letter): "" for letter in missing})


def font_families(text: str) -> list[str]:
    """Returns the names by which matplotlib knows the fonts of `text`, which must be drawable."""
    from matplotlib import font_manager

    find_fonts(text)
    names = [font_manager.FontProperties(fname=_own(False)).get_name()]
    for file in dict.fromkeys(_file(letter, False) for letter in text):
        if file != _own(False):
            font_manager.fontManager.addfont(file)
            names.append(font_manager.FontProperties(fname=file).get_name())
    return names


def _is_plain(letter: str) -> bool:
    return letter.isascii() and letter.isprintable()


def _file(letter: str, bold: bool) -> str:
    """Returns the font file of a letter that `find_fonts` has seen; empty where there is none."""
    return _own(bold) if _is_plain(letter) else _font_files[bold, letter]


def _files(bold: bool) -> Iterator[str]:
    """Yields DejaVu Sans, the fonts that had letters before, and the others installed: regular ones first."""
    yield _own(bold)
    yield from dict.fromkeys(file for file in _font_files.values() if file)

    from matplotlib.font_manager import findSystemFonts

    yield from sorted(findSystemFonts(), key=lambda file: ("regular" not in Path(file).name.lower(), file))


def _having(file: str, letters: set[str]) -> set[str]:
    """Returns those of `letters` that a font draws; coloured bitmaps do not count, they have sizes of their own."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(file)
        if not face.scalable:
            return set()
        face.set_size(12, 72)
        having = {letter for letter in letters if face.get_char_index(ord(letter))}
        return {letter for letter in having if _is_blank(letter) or face.load_char(ord(letter)).width > 0}
    except (OSError, RuntimeError):  # damaged, or of a kind that FreeType does not know
        return set()


def _is_blank(letter: str) -> bool:
    return unicodedata.category(letter) in _BLANK


def _runs(text: str, size: int, bold: bool) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
    """Yields the parts of a drawable text that use one font."""
    find_fonts(text, bold=bold)
    for file, letters in groupby(text, key=lambda letter: _file(letter, bold) or _own(bold)):
        yield _font(file, size), "".join(letters)


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Returns the width, in pixels, of a drawable text in letters of `size` pixels."""
    return sum(font.getlength(part) for font, part in _runs(text, size, bold))


def draw_text(
    ink: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: str, size: int, *, bold: bool = False
) -> None:
    """Draws a line of drawable text; `place` is its upper left corner."""
    x: float = place[0]
    base = place[1] + _font(_own(bold), size).getmetrics()[0]
    for font, part in _runs(text, size, bold):
        ink.text((x, base), part, colour, font, anchor="ls")
        x += font.getlength(part)


def wrap_text(text: str, width: int, size: int, lines: int, *, bold: bool = False) -> list[str]:
    """Breaks `text`, made drawable, into at most `lines` lines of `width` pixels; an ellipsis ends a longer one."""

    def fits(line: str) -> bool:
        return text_width(line, size, bold=bold) <= width

    wrapped: list[str] = []
    line = ""
    for word in drawable_text(" ".join(text.split()), bold=bold).split(" "):
        pieces = [""]
        for letter in word:  # cut where it is longer than a line
            if pieces[-1] and not fits(pieces[-1] + letter):
                pieces.append("")
            pieces[-1] += letter
        for piece in pieces:
            longer = f"{line} {piece}" if line else piece
            if line and not fits(longer):
                wrapped.append(line)
                line = piece
            else:
                line = longer
        if len(wrapped) > lines:
            break
    wrapped.append(line)
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while last and not fits(f"{last}…"):
        last = last[:-1]
    return [*wrapped[: lines - 1], f"{last.rstrip()}…"]
