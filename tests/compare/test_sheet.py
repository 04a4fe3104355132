"""Contact sheets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import pixels, save, sweep
from PIL import Image

from diffuse.compare import sheet
from diffuse.compare.axes import place_axes
from diffuse.compare.cells import cells_in_folder
from diffuse.compare.report import compare_folder


def test_sheets_have_the_pictures_in_their_places(tmp_path: Path) -> None:
    sweep(tmp_path, 3, (4, 8))
    (path,) = (path for path in compare_folder(tmp_path) if path.name == "sheet.png")
    drawn = np.asarray(Image.open(path).convert("RGB"))
    height, width = 24 * 4, 32 * 4  # small pictures are drawn larger
    found = []
    for steps in (4, 8):
        for seed in range(3):
            whole = np.kron(pixels(seed, steps), np.ones((4, 4, 1), np.uint8))
            match = [
                (x, y)
                for y in range(drawn.shape[0] - height + 1)
                for x in range(drawn.shape[1] - width + 1)
                if (drawn[y, x] == whole[0, 0]).all() and (drawn[y : y + height, x : x + width] == whole).all()
            ]
            found += match
    assert len(found) == 6
    assert [x for x, _ in found[:3]] == sorted({x for x, _ in found}) == [x for x, _ in found[3:]]
    assert len({y for _, y in found[:3]}) == 1 and found[0][1] < found[3][1]


def test_a_sheet_says_of_which_model_and_prompt_it_is(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 2, (4, 8))
    cells = cells_in_folder(tmp_path).cells
    first, *_ = sheet.arrange_sheets(cells, place_axes(cells, (), {}))
    assert first.title == f"tiny: {cells[0].config['prompt']}" and len(first.title) > 8
    cells[0].config["prompt"] = "something\nelse"  # type: ignore[index]
    assert {each.title for each in sheet.arrange_sheets(cells, place_axes(cells, (), {}))} == {"tiny"}


def test_sheets_are_one_a_value_and_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path / "a", 4, (4, 8, 16))
    sweep(tmp_path / "b", 4, (4, 8, 16), scheduler="euler")
    names = [path.name for path in compare_folder(tmp_path) if path.name.startswith("sheet")]
    assert names == ["sheet_Sampler_ddim.png", "sheet_Sampler_euler.png"]

    monkeypatch.setattr(sheet, "MOST_SIDE", 520)
    paths = [path for path in compare_folder(tmp_path) if path.name.startswith("sheet")]
    assert len(paths) == 4 and "sheet_Sampler_euler_page1.png" in [path.name for path in paths]
    assert max(max(Image.open(path).size) for path in paths) <= 520
    assert not (tmp_path / "report" / "sheet_Sampler_ddim.png").exists()  # of the earlier report


def test_no_side_of_a_sheet_is_beyond_what_viewers_open(tmp_path: Path) -> None:
    (cell,) = cells_in_folder(save(tmp_path, 0, 4).parent).cells
    heads = [str(number) for number in range(300)]
    large = sheet.Sheet("", heads, heads, dict.fromkeys(itertools.product(range(300), range(300)), cell))
    pages = sheet._pages(large, (512, 512))
    for page in pages:
        across, down = len(page.columns) * 518, len(page.rows) * 518
        assert max(across, down) <= sheet.MOST_SIDE and across * down <= sheet.MOST_PIXELS
    assert sum(len(page.columns) * len(page.rows) for page in pages) == 300 * 300


def test_what_was_made_twice_gets_a_sheet_of_its_own(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 2, (4, 8))
    sweep(tmp_path / "b", 2, (4, 8))
    names = [path.name for path in compare_folder(tmp_path) if path.name.startswith("sheet")]
    assert names == ["sheet.png", "sheet_again_2.png"]


@pytest.mark.parametrize("count", [2, 7, 40, 130])
def test_one_axis_breaks_into_rows_that_fit_on_a_page(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that neighbours stay on the same page, in reading order."""
    monkeypatch.setattr(sheet, "MOST_SIDE", 1500)
    monkeypatch.setattr(sheet, "MOST_PIXELS", 1500 * 1500)
    sweep(tmp_path, count, (4,))
    drawn: list[tuple[sheet.Sheet, sheet.SheetPage]] = []
    draw = sheet._draw

    def watched(one: sheet.Sheet, page: sheet.SheetPage, *rest: Any) -> Image.Image:
        drawn.append((one, page))
        return draw(one, page, *rest)

    monkeypatch.setattr(sheet, "_draw", watched)
    compare_folder(tmp_path)
    shown = [
        one.cells[column, row].config["seed"]
        for one, page in drawn
        for row in page.rows
        for column in page.columns
        if (column, row) in one.cells
    ]
    assert shown == list(range(count))
    assert all(list(page.columns) == list(range(one.size[0])) for one, page in drawn)
