"""Contact sheets: columns X, rows Y, one sheet for each value of the other axes, in pages that a viewer opens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from diffuse.compare import fonts
from diffuse.compare.axes import FILE, Axis, Layout
from diffuse.compare.cells import Cell
from diffuse.compare.pixels import read_frames
from diffuse.media.pixels import frame_strip

MOST_SIDE = 12_000  # pixels of a page that viewers, and a browser's canvas, can open
MOST_PIXELS = 50_000_000
SOFTWARE = "diffuse compare"  # in the metadata of every PNG file of a report

_SIDE = 512  # pixels; a larger image is drawn smaller
_STRIP_SIDE = 1024  # and so is a strip of frames
_SMALL = 128  # a smaller one is drawn larger, by a whole factor
_GAP = 6
_MARGIN = 16
_TEXT = 15
_HEADING = 18
_LINE = 20
_LINES = 3  # of a head or a caption
_CAPTION = _LINES * _LINE + _GAP
_HEAD = 2 * _MARGIN + _CAPTION + 2 * _LINE + 14  # above the first row, at most
_ROW_HEAD = 190  # pixels wide
_INK, _PAPER, _EMPTY = "#1d1f24", "#ffffff", "#f1f2f4"
_NAME_CHARACTERS = 60


@dataclass(frozen=True)
class Sheet:
    """One contact sheet: its heading, and the cells by column and row."""

    heading: str
    columns: Sequence[str]  # their heads
    rows: Sequence[str]
    cells: Mapping[tuple[int, int], Cell]
    captions: Mapping[tuple[int, int], str] = field(default_factory=dict)  # above each, instead of heads
    title: str = ""  # what all sheets are of

    @property
    def size(self) -> tuple[int, int]:
        """The number of columns and of rows."""
        across, down = (max(place[axis] for place in self.cells) + 1 for axis in (0, 1))
        return max(across, len(self.columns)), max(down, len(self.rows))


@dataclass(frozen=True)
class SheetPage:
    """The part of a sheet that fits on one page."""

    columns: range
    rows: range


def draw_sheets(cells: Sequence[Cell], layout: Layout, folder: Path) -> list[Path]:
    """Draws the sheets as PNG files into `folder` and returns their paths."""
    paths: list[Path] = []
    sheets = arrange_sheets(cells, layout)
    sizes = [_cell_size(list(sheet.cells.values())) for sheet in sheets]
    sheets = [sheet if sheet.rows else _run_on(sheet, size[0]) for sheet, size in zip(sheets, sizes, strict=True)]
    texts = [text for sheet in sheets for text in (*sheet.columns, *sheet.rows, *sheet.captions.values())]
    fonts.find_fonts("".join(texts))
    fonts.find_fonts("".join(sheet.title + sheet.heading for sheet in sheets), bold=True)
    for sheet, size in zip(sheets, sizes, strict=True):
        pages = _pages(sheet, size)
        stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"sheet {sheet.heading}").strip("_.")[:_NAME_CHARACTERS]
        for number, page in enumerate(pages, 1):
            heading = f"{sheet.heading}   page {number} of {len(pages)}" if len(pages) > 1 else sheet.heading
            name = f"{stem}_page{number:0{len(str(len(pages)))}d}" if len(pages) > 1 else stem
            path = _free(folder, name, paths)
            metadata = PngImagePlugin.PngInfo()
            metadata.add_text("Software", SOFTWARE)
            _draw(sheet, page, size, heading.strip()).save(path, compress_level=4, pnginfo=metadata)
            paths.append(path)
    return paths


def is_report_image(path: Path) -> bool:
    """Returns true for a PNG file that is a sheet or a plot of a report."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def arrange_sheets(cells: Sequence[Cell], layout: Layout) -> list[Sheet]:
    """Returns the sheets in order. Cells that would lie on one another, made twice, go to a sheet of their own."""
    piles: dict[tuple[tuple[int, ...], int], dict[tuple[int, int], Cell]] = {}
    for cell in sorted(cells, key=lambda cell: [axis.index(cell) for axis in layout.sheets]):
        values = tuple(axis.index(cell) for axis in layout.sheets)
        place = (layout.x.index(cell) if layout.x else 0, layout.y.index(cell) if layout.y else 0)
        again = 0
        while place in piles.setdefault((values, again), {}):
            again += 1
        piles[values, again][place] = cell
    sheets = []
    title = _shared_title(cells)
    for (values, again), placed in piles.items():
        heads = [axis.title(axis.values[value]) for axis, value in zip(layout.sheets, values, strict=True)]
        heading = "   ".join([*heads, f"again {again + 1}"] if again else heads)
        sheets.append(Sheet(heading, _titles(layout.x), _titles(layout.y), placed, title=title))
    return sheets


def _shared_title(cells: Sequence[Cell]) -> str:
    """Returns the model and the prompt, as far as all cells share them."""
    found = []
    for key in ("model", "prompt"):
        values = {str(cell.config.get(key) or "") for cell in cells}
        found += list(values) if len(values) == 1 else []
    return ": ".join(" ".join(text.split()) for text in found if text.strip())


def _titles(axis: Axis | None) -> list[str]:
    if axis is None:
        return []
    return [Path(str(value)).name if axis.key == FILE else axis.title(value) for value in axis.values]


def _run_on(sheet: Sheet, width: int) -> Sheet:
    """Breaks the cells of a single axis, which could make a line of any length, into several lines.

    A line fits on a page, so that cells which follow one another are on the same page.
    """
    if not sheet.columns:
        return sheet
    most = min(math.isqrt(MOST_PIXELS), MOST_SIDE - _ROW_HEAD - 2 * _MARGIN) // (width + _GAP)
    across = max(1, min(round(math.sqrt(len(sheet.columns) * 1.6)), most))
    places = {column: (column % across, column // across) for column, _ in sheet.cells}
    cells = {places[column]: cell for (column, _), cell in sheet.cells.items()}
    captions = {place: sheet.columns[column] for column, place in places.items()}
    return replace(sheet, columns=(), rows=(), cells=cells, captions=captions)


def _cell_size(cells: Sequence[Cell]) -> tuple[int, int]:
    """Returns the width and height, in pixels, that every one of `cells` fits in as it is drawn."""
    sizes = [_thumbnail(cell).size for cell in cells if cell.is_video] or [_image_size(cell) for cell in cells]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _image_size(cell: Cell) -> tuple[int, int]:
    with Image.open(cell.path) as image:
        return _drawn_size(*image.size, _SIDE)


def _drawn_size(width: int, height: int, most: int) -> tuple[int, int]:
    longest = max(width, height)
    factor: float = max(1, _SMALL // longest) if longest <= most else most / longest
    return max(1, round(width * factor)), max(1, round(height * factor))


def _thumbnail(cell: Cell) -> Image.Image:
    """Returns the frames side by side, as drawn on a sheet; an image is one frame."""
    frames = read_frames(cell)
    strip = Image.fromarray(frame_strip(frames))
    size = _drawn_size(*strip.size, _SIDE if len(frames) == 1 else _STRIP_SIDE)
    larger = size[0] >= strip.width
    return strip.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _pages(sheet: Sheet, size: tuple[int, int]) -> list[SheetPage]:
    """Splits a sheet where it is larger than a page."""
    across, down = sheet.size
    width, height = size[0] + _GAP, size[1] + _GAP + (_CAPTION if sheet.captions else 0)
    columns = max(1, min(across, (MOST_SIDE - _ROW_HEAD - 2 * _MARGIN) // width))
    rows = max(1, min(down, (MOST_SIDE - _HEAD) // height))
    while (columns * width + _ROW_HEAD) * (rows * height + _HEAD) > MOST_PIXELS and columns * rows > 1:
        if rows == 1 or (columns > 1 and columns * width > rows * height):
            columns -= 1
        else:
            rows -= 1
    return [
        SheetPage(range(left, min(left + columns, across)), range(top, min(top + rows, down)))
        for top in range(0, down, rows)
        for left in range(0, across, columns)
    ]


def _draw(sheet: Sheet, page: SheetPage, size: tuple[int, int], heading: str) -> Image.Image:
    """Draws one page."""
    width, height = size
    columns = page.columns if sheet.columns else ()
    heads = {column: fonts.wrap_text(sheet.columns[column], width, _TEXT, _LINES) for column in columns}
    captions = {place: fonts.wrap_text(text, width, _TEXT, _LINES) for place, text in sheet.captions.items()}
    above = max((len(lines) for lines in [*heads.values(), *captions.values()]), default=0) * _LINE
    left = _MARGIN + (_ROW_HEAD if sheet.rows else 0)
    lines = [text for text in (sheet.title, heading) if text]
    top = _MARGIN + (len(lines) * (_LINE + 4) + 6 if lines else 0) + above + (_GAP if above else 0)
    step = height + _GAP + (above + _GAP if captions else 0)
    right = left + len(page.columns) * (width + _GAP) - _GAP + _MARGIN
    canvas = Image.new("RGB", (max(right, 240), top + len(page.rows) * step - _GAP + _MARGIN), _PAPER)
    ink = ImageDraw.Draw(canvas)
    for number, text in enumerate(lines):
        (line,) = fonts.wrap_text(text, canvas.width - 2 * _MARGIN, _HEADING, 1, bold=True)
        fonts.draw_text(canvas, (_MARGIN, _MARGIN + number * (_LINE + 4)), line, _INK, _HEADING, bold=True)
    for across, column in enumerate(page.columns):
        x = left + across * (width + _GAP)
        _write(canvas, (x, top - _GAP), heads.get(column, ()))
        for down, row in enumerate(page.rows):
            y = top + down * step
            _write(canvas, (x, y - _GAP), captions.get((column, row), ()))
            if (column, row) in sheet.cells:
                canvas.paste(_thumbnail(sheet.cells[column, row]), (x, y))
            elif not captions:
                ink.rectangle((x, y, x + width - 1, y + height - 1), _EMPTY)
    for down, row in enumerate(page.rows):
        if sheet.rows:
            heads_left = fonts.wrap_text(sheet.rows[row], _ROW_HEAD - 2 * _GAP, _TEXT, max(1, height // _LINE))
            _write(canvas, (_MARGIN, top + down * step + len(heads_left) * _LINE), heads_left)
    return canvas


def _write(canvas: Image.Image, bottom: tuple[int, int], lines: Sequence[str]) -> None:
    """Writes lines of text, the last of which ends at `bottom`."""
    x, y = bottom[0], bottom[1] - len(lines) * _LINE
    for number, line in enumerate(lines):
        fonts.draw_text(canvas, (x, y + number * _LINE), line, _INK, _TEXT)


def _free(folder: Path, stem: str, taken: Sequence[Path]) -> Path:
    """Returns a path that is not taken: two headings may shorten to one name."""
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        path, number = folder / f"{stem}_{number}.png", number + 1
    return path
