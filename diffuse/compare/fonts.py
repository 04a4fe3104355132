"""Text on sheets and plots, in fonts that have its letters.

Most are in DejaVu Sans, which matplotlib ships and which has most of the world's alphabets. Others come from a font
that is installed; on sheets, emoji also from one that has coloured pictures. A letter that no font has is written as
`\\u6f22`, because an empty box would say nothing.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FILE = ("mpl-data", "fonts", "ttf")
_BLANK = ("Zs", "Cf", "Mn")  # kinds of characters that have nothing to draw, or draw on another

_STRIKES = (109, 136, 160, 128, 96, 72, 64, 48, 40, 32, 20)  # pixels that coloured fonts are published in
# What joins emoji to one, or changes the one before: it belongs to the font of that one.
_JOINING = ("\u200d", "\ufe0f", *map(chr, range(0x1F3FB, 0x1F400)))

_font_files: dict[tuple[bool, str], str] = {}  # (bold, letter) -> the file of a font that has it; "" for none
_coloured_files: dict[str, str] = {}  # letter that is in none of those -> the file of a coloured font; "" for none


@cache
def _own(bold: bool) -> str:
    """Returns the file of DejaVu Sans. Matplotlib itself is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], *_FILE, "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@cache
def _strike(file: str) -> ImageFont.FreeTypeFont | None:
    """Returns a coloured font in the size of its pictures; None where the file is none."""
    for size in _STRIKES:
        try:
            return ImageFont.truetype(file, size)
        except OSError:  # no such size
            continue
    return None


def drawable_text(text: str, *, bold: bool = False, coloured: bool = True) -> str:
    """Returns `text` in letters that can be drawn, `coloured` ones where the drawing is not matplotlib's."""
    find_fonts(text, bold=bold)
    return "".join(
        letter
        if _file(letter, bold) or (coloured and _coloured_files[letter])
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
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
    _find_coloured(missing - _coloured_files.keys())


def _find_coloured(missing: set[str]) -> None:
    """Finds coloured fonts for letters that no other font has."""
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    for file in sorted(findSystemFonts()) if missing else ():
        try:
            face = FT2Font(file)
            if face.scalable or not face.num_fixed_sizes or _strike(file) is None:
                continue
        except (OSError, RuntimeError):
            continue
        having = {letter for letter in missing if face.get_char_index(ord(letter))}
        _coloured_files.update(dict.fromkeys(having, file))
        missing = missing - having
    _coloured_files.update(dict.fromkeys(missing, ""))


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


def _runs(text: str, size: int, bold: bool) -> Iterator[tuple[ImageFont.FreeTypeFont, str, float]]:
    """Yields the parts of a drawable text that use one font, with the scale at which a coloured one is drawn, or 0."""
    find_fonts(text, bold=bold)
    files: list[tuple[str, bool]] = []
    for letter in text:
        file = _file(letter, bold)
        if letter in _JOINING and files and files[-1][1]:
            files.append(files[-1])
        elif not file and _coloured_files.get(letter):
            files.append((_coloured_files[letter], True))
        else:
            files.append((file or _own(bold), False))
    for (file, is_coloured), group in groupby(zip(files, text, strict=True), key=lambda pair: pair[0]):
        part = "".join(letter for _, letter in group)
        strike = _strike(file) if is_coloured else None
        if strike is None:
            yield _font(file, size), part, 0.0
        else:
            yield strike, part, size / strike.size


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Returns the width, in pixels, of a drawable text in letters of `size` pixels."""
    return sum(font.getlength(part) * (scale or 1) for font, part, scale in _runs(text, size, bold))


def draw_text(
    canvas: Image.Image, place: tuple[int, int], text: str, colour: str, size: int, *, bold: bool = False
) -> None:
    """Draws a line of drawable text; `place` is its upper left corner."""
    ink = ImageDraw.Draw(canvas)
    x: float = place[0]
    base = place[1] + _font(_own(bold), size).getmetrics()[0]
    for font, part, scale in _runs(text, size, bold):
        if scale:
            _draw_coloured(canvas, (round(x), base), part, font, scale)
        else:
            ink.text((x, base), part, colour, font, anchor="ls")
        x += font.getlength(part) * (scale or 1)


def _draw_coloured(
    canvas: Image.Image, place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, scale: float
) -> None:
    """Draws emoji, which have one size, at another; `place` is the left end of the base line."""
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, anchor="ls"))
    drawn = Image.new("RGBA", (max(right, left + 1) - left, max(bottom, top + 1) - top))
    ImageDraw.Draw(drawn).text((-left, -top), text, "black", font, anchor="ls", embedded_color=True)
    size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
    small = drawn.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(small.convert(canvas.mode), (place[0] + round(left * scale), place[1] + round(top * scale)), small)


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
