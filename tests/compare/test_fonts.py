"""Letters on sheets and plots that matplotlib's font lacks: from an installed font, or so that they can be read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from command import diffuse, finished, start
from compared import save
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.sbixGlyph import Glyph
from fontTools.ttLib.tables.sbixStrike import Strike
from matplotlib import font_manager
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from diffuse.compare import fonts

BLOCK, EMPTY, NOWHERE = "漢", "あ", "\U0001f680"
BLOCK_SIDE = 8  # pixels of what it draws, at least


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed, and nothing was looked for."""
    monkeypatch.setattr(fonts, "_font_files", {})
    monkeypatch.setattr(fonts, "_coloured_files", {})
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as XDG_DATA_HOME has it, with a font in which a letter is a black square, and another draws nothing."""
    pen, nothing = TTGlyphPen(None), TTGlyphPen(None)
    for number, corner in enumerate([(50, 0), (50, 800), (950, 800), (950, 0)]):
        (pen.lineTo if number else pen.moveTo)(corner)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "block", "empty"])
    builder.setupCharacterMap({ord(BLOCK): "block", ord(EMPTY): "empty"})
    builder.setupGlyf({".notdef": nothing.glyph(), "block": pen.glyph(), "empty": nothing.glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "block", "empty"], (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Blocks", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    folder = tmp_path_factory.mktemp("data")
    (folder / "fonts").mkdir()
    (folder / "fonts" / "damaged.ttf").write_bytes(b"no font")
    builder.save(folder / "fonts" / "Blocks-Regular.ttf")
    return folder


def pictures(folder: Path, prompt: str) -> dict[str, np.ndarray]:
    """The sheets and plots of pictures of `prompt`, and of another."""
    for number, text in enumerate((prompt, "A zebra")):
        for steps in (4, 8):
            save(folder, 1, steps, name=f"{number}_{steps}", prompt=text, seconds=steps)
    done = diffuse("compare", folder, "--x", "steps", "--y", "prompt", "--out", folder / "out", cwd=folder)
    assert done.status == 0, done.err
    return {path.name: np.asarray(Image.open(path)) for path in done.paths if path.suffix == ".png"}


def test_letters_that_no_font_has_can_be_read(bare: None, tmp_path: Path) -> None:
    """They look as if they had been typed so."""
    odd = pictures(tmp_path / "odd", f"{BLOCK} é \x07 ✓{NOWHERE}")
    typed = pictures(tmp_path / "typed", r"\u6f22 é \x07 ✓\U0001f680")
    assert odd.keys() == typed.keys() == {"quality_by_steps.png", "seconds_by_steps.png", "sheet.png"}
    assert all(np.array_equal(odd[name], typed[name]) for name in odd)
    assert fonts.drawable_text("a é ✓ Ж\u200d") == "a é ✓ Ж\u200d"
    assert fonts.drawable_text("\udc80") == r"\udc80"  # of a path that is not UTF-8


def drawn_width(line: str) -> int:
    drawn = Image.new("L", (400, 40))
    fonts.draw_text(drawn, (0, 0), line, "white", 15)
    return int(np.flatnonzero(np.asarray(drawn).max(axis=0))[-1])


def test_lines_are_cut_as_they_are_drawn(bare: None) -> None:
    lines = fonts.wrap_text(f"{BLOCK * 20} and more", 150, 15, 2)
    assert len(lines) == 2 and lines[0].startswith(r"\u6f22\u6f22") and lines[1].endswith("…")
    for line in lines:
        assert abs(drawn_width(line) - fonts.text_width(line, 15)) < 3 and fonts.text_width(line, 15) <= 150


def test_an_installed_font_is_used(installed: Path, tmp_path: Path) -> None:
    """By the command, in a process that looks for fonts itself. What draws nothing is no letter of a font's."""
    for number, text in enumerate((f"x{BLOCK}", "zebra")):
        for steps in (4, 8):
            save(tmp_path, 1, steps, name=f"{number}_{steps}", prompt=text, seconds=steps)
    process = start("compare", ".", "--x", "steps", "--y", "prompt", cwd=tmp_path, env={"XDG_DATA_HOME": installed})
    assert finished(process).status == 0
    labels = np.asarray(Image.open(tmp_path / "report" / "sheet.png").convert("L"))[:, :200]
    legend = np.asarray(Image.open(tmp_path / "report" / "seconds_by_steps.png").convert("L"))
    for drawn in (labels, legend):
        assert sliding_window_view(drawn, (BLOCK_SIDE, BLOCK_SIDE)).max(axis=(2, 3)).min() < 60


def test_a_font_is_asked_for_what_it_draws(bare: None, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(path) for path in (installed / "fonts").iterdir()]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    assert fonts.drawable_text(f"{BLOCK}{EMPTY}{NOWHERE}") == rf"{BLOCK}\u3042\U0001f680"
    assert fonts.drawable_text(BLOCK, bold=True) == BLOCK
    assert fonts.font_families(f"a{BLOCK}") == ["DejaVu Sans", "Blocks"]
    assert fonts.text_width(f"a{BLOCK}a", 15) == pytest.approx(2 * fonts.text_width("a", 15) + 15, abs=1)
    assert abs(drawn_width(f"a{BLOCK}a{BLOCK}a") - fonts.text_width(f"a{BLOCK}a{BLOCK}a", 15)) < 3


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A font with a picture for one letter, a red square of 64 x 64 pixels, and no outlines, as fonts of emoji are."""
    names, nothing = [".notdef", "square"], TTGlyphPen(None)
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(NOWHERE): "square"})
    builder.setupGlyf(dict.fromkeys(names, nothing.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Colours", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    out, strike, table = io.BytesIO(), Strike(ppem=64, resolution=72), newTable("sbix")
    Image.new("RGBA", (64, 64), "red").save(out, "PNG")
    strike.glyphs = {name: Glyph(glyphName=name) for name in names}
    strike.glyphs["square"] = Glyph(glyphName="square", graphicType="png ", imageData=out.getvalue())
    table.version, table.flags, table.numStrikes, table.strikes = 1, 1, 1, {64: strike}
    builder.font["sbix"] = table
    for outlines in ("glyf", "loca"):
        del builder.font[outlines]
    path = tmp_path_factory.mktemp("coloured") / "Colours.ttf"
    builder.save(path)
    return str(path)


@pytest.mark.parametrize(
    "line",
    [f"a{NOWHERE}b", NOWHERE, f"{NOWHERE}\u200d{NOWHERE}", f"{NOWHERE}\ufe0f", f"{BLOCK}{NOWHERE}{EMPTY}", "\u200dab"],
)
def test_emoji_are_drawn_in_their_colours(
    line: str, bare: None, coloured: str, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [coloured, *(str(path) for path in (installed / "fonts").iterdir())]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    assert fonts.drawable_text(line).replace(r"\u3042", EMPTY) == line
    drawn = Image.new("RGB", (200, 40), "white")
    fonts.draw_text(drawn, (4, 4), fonts.drawable_text(line), "black", 15)
    red = (np.asarray(drawn) == (255, 0, 0)).all(axis=2)
    assert red.any() == (NOWHERE in line)
    if NOWHERE in line:
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        assert rows[-1] - rows[0] < 18 and columns[-1] < 4 + fonts.text_width(fonts.drawable_text(line), 15) + 1


def test_plots_write_emoji_out(bare: None, coloured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib draws outlines alone."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [coloured])
    assert fonts.drawable_text(NOWHERE, coloured=False) == r"\U0001f680"
    assert {"seconds_by_steps.png", "sheet.png"} <= pictures(tmp_path, f"x{NOWHERE}").keys()
