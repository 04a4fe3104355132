"""The page of a report in headless Chromium: what it shows, chooses, filters and enlarges. Skipped without one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from browser import needs_chromium, started
from compared import PROMPT, film, job, pixels, record, save, sweep
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from videos import grey_video

from diffuse.compare import embed
from diffuse.compare.report import ReportOptions, compare_folder

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page(browser.Page):
    """An open report."""

    def __init__(self, driver: webdriver.Chrome, file: Path) -> None:
        super().__init__(driver, file.as_uri())

    def key(self, key: str) -> None:
        self.driver.switch_to.active_element.send_keys(key)

    def choose(self, selector: str, value: Any) -> None:
        script = "(e => { e.value = arguments[1]; e.dispatchEvent(new Event('change')); })"
        self(f"{script}(document.querySelector(arguments[0]))", selector, value)

    def loaded(self, selector: str = "#grid img") -> int:
        """How many pictures are decoded."""
        return int(
            self("[...document.querySelectorAll(arguments[0])].filter(e => e.src && e.naturalWidth).length", selector)
        )

    def quiet(self) -> None:
        """Nothing was complained of, and nothing was asked for from elsewhere."""
        assert self.driver.get_log("browser") == []
        asked = self("performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in asked if not name.startswith(("blob:", "data:"))] == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, three step counts and two samplers; moved away from its pictures, as into a tracking store."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep(folder / "ddim", 3, (4, 8, 16))
    sweep(folder / "euler", 3, (4, 8, 16), scheduler="euler")
    job(folder / "failed", None, record(9, 4))
    made = compare_folder(folder, options=ReportOptions(sheets=False))[0]
    return Path(shutil.move(made, tmp_path_factory.mktemp("elsewhere") / "report.html"))


@pytest.fixture
def page(chromium: webdriver.Chrome, report: Path) -> Iterator[Page]:
    opened = Page(chromium, report)
    yield opened
    opened.quiet()


def test_the_pictures_are_there(page: Page) -> None:
    for scroll in ("0", "1e9"):  # they load as they come near
        page(f"document.querySelector('#grid').scrollTo(0, {scroll})")
        page.until("document.querySelectorAll('#grid img[src]').length >= 9")
        page.until("[...document.querySelectorAll('#grid img[src]')].every(e => e.naturalWidth === 32)")
    page("document.querySelector('#grid').scrollTo(0, 0)")
    page.until("document.querySelector('#grid img').naturalWidth === 32")
    assert page.texts(".column-head") == ["Seed: 0", "Seed: 1", "Seed: 2"]
    assert page.texts(".row-head") == ["Steps: 4", "Steps: 8", "Steps: 16"]
    assert (page.seen("#grid .shot img") == pixels(0, 4)).all()  # without loss
    assert page.texts(".failures summary") == ["1 job failed"]
    assert "the disk is full" in page.texts(".failures li")[0]


def test_axes_are_chosen(page: Page) -> None:
    page.choose("#x", page("data.axes.findIndex(a => a.key === 'scheduler')"))
    assert page.texts(".column-head") == ["Sampler: ddim", "Sampler: euler"]
    assert len(page.all("#grid .shot")) == 18  # three seeds in each place
    page.click("#swap")
    assert page.texts(".row-head") == ["Sampler: ddim", "Sampler: euler"]
    page.choose("#x", -1)
    assert page.texts(".column-head") == [] and len(page.all("#grid .shot")) == 18
    page.choose("#y", page("data.axes.findIndex(a => a.key === 'seed')"))
    assert page.texts(".row-head") == ["Seed: 0", "Seed: 1", "Seed: 2"]
    page.choose("#x", page("data.axes.findIndex(a => a.key === 'seed')"))  # the other one makes room
    assert page.texts(".column-head") == ["Seed: 0", "Seed: 1", "Seed: 2"]


def test_values_are_filtered(page: Page) -> None:
    page.click(".filter summary", 0)
    page.click(".filter[open] input[type=checkbox]", 1)
    assert len(page.all("#grid .shot")) == 9
    assert page.texts(".filter.active summary") == ["Sampler: ddim"]
    assert not page.texts("#grid .below span:not(.number)")  # with one sampler left, none is named below
    page.key(Keys.ESCAPE)
    page.click(".filter summary", 2)
    page.click(".filter[open] .row button", 1)
    assert page.all(".nothing")[0].is_displayed() and not page.all("#grid .shot")
    page.key(Keys.ESCAPE)
    page.click("[data-view=table]")
    page.click("#all")
    assert len(page.all("#table tbody tr")) == 18


def test_a_click_enlarges_and_shows_the_command(page: Page) -> None:
    page.click("#grid .shot", 0)
    assert page.all("#viewer")[0].is_displayed()
    page.until("document.querySelector('.layer.a').naturalWidth === 32")
    box = page("document.querySelector('.box.a').getBoundingClientRect().toJSON()")
    assert box["height"] > 500 and box["width"] / box["height"] == pytest.approx(32 / 24, rel=0.01)
    command = page.texts("#viewer pre")[0]
    assert command.startswith("diffuse prompt=") and "seed=0" in command and "num_inference_steps=4" in command
    assert not page.all("#viewer b")  # the prompt's own markup is text
    page.click("#copy")
    page.until("document.querySelector('#copy').textContent === 'Copied'")
    page.key(Keys.ARROW_DOWN)
    assert "num_inference_steps=8" in page.texts("#viewer pre")[0]
    page.key(Keys.ARROW_RIGHT)
    assert "seed=1" in page.texts("#viewer pre")[0]
    page.key(Keys.ESCAPE)
    assert not page.all("#viewer")[0].is_displayed()
    assert page("document.activeElement.dataset.cell") is not None  # back where it was


def test_a_slider_wipes_between_two(page: Page) -> None:
    page.click("#grid .shot", 0)
    page.key("w")
    page.until("[...document.querySelectorAll('.layer')].filter(e => e.naturalWidth).length === 2")
    assert (page.seen(".layer.a") == pixels(0, 4)).all() and (page.seen(".layer.b") == pixels(0, 16)).all()
    assert page.texts(".which") == ["Steps: 4", "Steps: 16"]
    page("(e => { e.value = 25; e.dispatchEvent(new Event('input')); })(document.querySelector('.cut'))")
    left, top, width, height = page(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('.box.a').getBoundingClientRect())"
    )
    shot = np.asarray(Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB"), np.int16)

    def at(x: float, y: float) -> np.ndarray:
        return shot[int(top + y * height), int(left + x * width)]

    first, last = pixels(0, 4).astype(np.int16), pixels(0, 16).astype(np.int16)
    for x in (2, 6, 12, 30):  # of 32 columns, eight are the first picture's
        expected = (first if x < 8 else last)[12, x]
        assert abs(at((x + 0.5) / 32, 12.5 / 24) - expected).max() <= 3, x
    stage = page.all(".stage")[0]
    actions = webdriver.ActionChains(page.driver)
    actions.move_to_element(stage).click_and_hold().move_by_offset(100, 0).release().perform()
    assert page("viewer.cut") > 55
    page.key(Keys.ARROW_DOWN)
    assert page.texts(".which") == ["Steps: 8", "Steps: 16"]


def test_side_by_side_difference_and_other_partners(page: Page) -> None:
    page.click("#grid .shot", 0)
    page.key("s")
    lefts = page("[...document.querySelectorAll('.box')].map(e => e.getBoundingClientRect().left)")
    assert lefts[1] > lefts[0] + 200
    page.key("d")
    page.until("[...document.querySelectorAll('.layer')].every(e => e.complete)")
    options = page.texts("#against option")
    assert options[0] == "Reference (Steps: 16)" and "Sampler: euler" in options and "Seed: 2" in options
    page.choose(
        "#against",
        page("[...document.querySelectorAll('#against option')].find(o => o.textContent === 'Seed: 2').value"),
    )
    assert page("data.cells[viewer.b].at[data.axes.findIndex(a => a.key === 'seed')]") == 2
    page.key("p")
    page.key(Keys.ARROW_RIGHT)
    assert "Pinned (Seed: 0)" in page.texts("#against option:checked")


def test_the_table_is_sorted(page: Page) -> None:
    page.click("[data-view=table]")
    column = page.texts("#table th").index("PSNR dB")
    page.click("#table th button", column - 1)

    def values() -> list[str]:
        return [row for row in page.texts(f"#table td:nth-child({column + 1})") if row != "reference"]

    assert values() == sorted(values(), key=float) and len(values()) == 12
    page.click("#table th button", column - 1)
    assert values() == sorted(values(), key=float, reverse=True)
    page.until("document.querySelectorAll('#table img[src]').length > 5")


def test_plots_follow_the_filter_and_lead_to_pictures(page: Page) -> None:
    page.click("[data-view=plots]")
    assert page.texts("figcaption") == ["PSNR, dB", "SSIM", "FLIP (0 is equal)", "Seconds a picture"]
    assert len(page.all("figure:first-child circle")) == 12 and len(page.all("figure:last-child circle")) == 18
    page.click(".filter summary", 0)
    page.click(".filter[open] input[type=checkbox]", 1)
    assert len(page.all("figure:first-child circle")) == 6
    page("document.querySelector('figure circle').dispatchEvent(new MouseEvent('click'))")
    assert page.all("#viewer")[0].is_displayed()


def test_light_dark_and_keys(page: Page) -> None:
    colours = set()
    for _ in range(2):
        colours.add(page("getComputedStyle(document.documentElement).backgroundColor"))
        page.click("#theme")
    assert len(colours) == 2
    page.key("?")
    assert page.all("#keys")[0].is_displayed()
    page.click("#keys button")
    page("document.querySelector('#grid .shot').focus()")
    page.key(Keys.ARROW_RIGHT)
    assert page("document.activeElement.dataset.cell") == page(
        "document.querySelectorAll('.spot')[1].firstChild.dataset.cell"
    )
    page.key(Keys.ENTER)
    assert page.all("#viewer")[0].is_displayed()


def test_two_thousand_pictures_load_as_they_are_scrolled_to(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    one = save(tmp_path / "a", 0, 4)
    for seed in range(200):
        for steps in range(1, 11):
            folder = tmp_path / "jobs" / f"{seed}-{steps}"
            folder.mkdir(parents=True)
            (folder / "x.png").hardlink_to(one)
            job(folder, folder / "x.png", record(seed, steps))
    made = compare_folder(tmp_path / "jobs", options=ReportOptions({"x": "steps"}, sheets=False))[0]
    page = Page(chromium, made)
    assert len(page.all("#grid .shot")) == 2000
    page.until("document.querySelectorAll('#grid img[src]').length > 10")
    first = page.loaded()
    assert 10 < first < 400
    page("document.querySelector('#grid').scrollTo(0, 1e9)")
    page.until("document.querySelector('#grid .line:last-child img').naturalWidth > 0")
    assert page.loaded() < 400  # and the first ones were let go of
    assert page("addresses.size") <= page("KEPT") + 400
    assert not page("document.querySelector('#grid .line:nth-child(2) img').hasAttribute('src')")
    page.quiet()


def test_the_page_stays_within_its_budget(
    chromium: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    for seed in range(4):
        path = save(tmp_path / str(seed), seed, 4, width=512, height=384)
        job(tmp_path / str(seed), path, record(seed, 4, width=512, height=384))
        Image.fromarray(noise.integers(0, 256, (384, 512, 3), np.uint8)).save(path)  # the hardest to make small
    monkeypatch.setattr(embed, "BUDGET", 160_000)
    made = compare_folder(tmp_path, options=ReportOptions(sheets=False))[0]
    assert made.stat().st_size < 160_000 * 4 / 3 + 100_000

    page = Page(chromium, made)
    page.until("document.querySelector('#grid img').naturalWidth > 0")
    assert page("document.querySelector('#grid img').naturalWidth") < 512
    page.click("#grid .shot", 0)
    page.until("document.querySelector('.layer.a').naturalWidth === 512")  # the original lies beside the page
    assert "copy of" in page.texts(".origin")[0]
    assert page.driver.get_log("browser") == []

    alone = Path(shutil.copy(made, tmp_path / "alone.html"))
    page = Page(chromium, alone)
    page.click("#grid .shot", 0)
    page.until("document.querySelector('.layer.a').naturalWidth > 0 && !originals")
    assert page("document.querySelector('.layer.a').naturalWidth") < 512


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_videos_play_side_by_side(suffix: str, chromium: webdriver.Chrome, tmp_path: Path) -> None:
    for steps, levels in ((4, [20, 60, 100, 140]), (8, [60, 100, 140, 200])):
        folder = tmp_path / str(steps)
        folder.mkdir()
        job(folder, grey_video(folder / f"v.{suffix}", levels * 2), record(1, steps))
    files = compare_folder(tmp_path)
    (drawn,) = (path for path in files if path.name == "sheet.png")
    assert Image.open(drawn).width > 2 * 8 * 48  # the frames of both
    page = Page(chromium, files[0])
    page.until("document.querySelector('#grid img.strip').naturalWidth > 0")
    strip = page("(e => e.naturalWidth / e.naturalHeight)(document.querySelector('#grid img.strip'))")
    assert strip == pytest.approx(8 * 48 / 32, rel=0.1)
    page.click("#grid .shot", 0)
    page.key("s")
    page.until("[...document.querySelectorAll('video')].filter(v => v.readyState >= 2).length === 2")
    page.until("document.querySelector('video').currentTime > 0.1")
    page.click(".player .icon")
    page.until("[...document.querySelectorAll('video')].every(v => v.paused && !v.seeking)")
    page("(e => { e.value = 0.4; e.dispatchEvent(new Event('input')); })(document.querySelector('.player input'))")
    page.until(
        "[...document.querySelectorAll('video')].every(v => !v.seeking && v.currentTime > 0.2 && v.readyState >= 2)"
    )
    times = page("[...document.querySelectorAll('video')].map(v => v.currentTime)")
    assert times[0] == pytest.approx(times[1], abs=0.01)
    assert page.seen("video.b").mean() > page.seen("video.a").mean() + 20
    page.quiet()


def test_the_page_plays_films_in_step_with_the_sound_of_one(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    for steps in (4, 8):
        film(steps, tmp_path / str(steps), "mp4")
    page = Page(chromium, compare_folder(tmp_path, options=ReportOptions(sheets=False))[0])
    films = "[...document.querySelectorAll('video')]"
    page.click("#play")
    page.until(f"{films}.length === 2 && {films}.every(v => !v.paused && v.currentTime > 0 && v.muted)")
    page.click("#play")
    page.until(f"{films}.length === 0")
    page.click("#grid .shot", 0)
    page.key("s")
    page.until(f"{films}.length === 2 && {films}.every(v => v.readyState >= 2)")
    heard = f"{films}.map(v => !v.muted)"
    assert page("document.querySelectorAll('.speaker:not([hidden])').length") == 2
    states = []
    for _ in range(3):
        states.append(page(heard))
        page.key("m")
    assert states == [[True, False], [False, True], [False, False]]
    page.quiet()


def test_it_works_in_a_frame_that_may_do_little(chromium: webdriver.Chrome, report: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer.html"  # as a tracking page shows it
    outer.write_text(f'<iframe sandbox="allow-scripts" src="{report.as_uri()}" width=1300 height=800></iframe>')
    page = Page(chromium, outer)
    chromium.switch_to.frame(0)
    page.until("document.querySelectorAll('#grid img[src]').length >= 9")
    page.until("[...document.querySelectorAll('#grid img[src]')].every(e => e.naturalWidth === 32)")
    page.click("#grid .shot", 0)
    page.key("w")
    page.until("[...document.querySelectorAll('.layer')].filter(e => e.naturalWidth).length === 2")
    page.click("#copy")
    page.until("document.querySelector('#copy').textContent !== 'Copy'")
    page.quiet()


def test_what_is_in_a_prompt_stays_a_prompt(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    odd = ["</script><script>document.title='taken'</script>", "<img src=x onerror=alert(1)>", "<!-- media -->"]
    odd += ["/* style */", "\u2028\N{ROCKET} & \"'", "\udcff"]
    for number, prompt in enumerate(odd):
        save(tmp_path / str(number), 1, 4, prompt=prompt)
    made = compare_folder(tmp_path)[0]
    page = Page(chromium, made)
    page.until("document.querySelectorAll('#grid img[src]').length === 6")
    titles = page("data.axes.find(a => a.key === 'prompt').values.filter(v => v.isWellFormed())")
    assert set(titles) == set(odd[:5])
    assert page("document.title") != "taken"
    page.quiet()
    commands = json.loads(page("JSON.stringify(data.cells.map(c => c.command.toWellFormed()))"))
    assert any("'</script>" in command for command in commands)
    assert PROMPT not in titles


def test_one_axis_of_many_values_breaks_into_rows(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    """Nothing has to be scrolled sideways, the order stays, and each picture says which one it is."""
    sweep(tmp_path / "sweep", 30, (4,))
    page = Page(chromium, compare_folder(tmp_path / "sweep", options=ReportOptions(sheets=False))[0])
    boxes = page("[...document.querySelectorAll('#grid .shot')].map(e => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == 30 and max(box["right"] for box in boxes) <= page("innerWidth")
    assert len({box["top"] for box in boxes}) > 2
    assert boxes == sorted(boxes, key=lambda box: (box["top"], box["left"]))
    labels = page("[...document.querySelectorAll('#grid .shot .below span:first-child')].map(e => e.textContent)")
    assert labels == [f"Seed: {seed}" for seed in range(30)]
    page.quiet()


def test_one_axis_of_few_values_stays_a_line(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    sweep(tmp_path / "sweep", 3, (4,))
    page = Page(chromium, compare_folder(tmp_path / "sweep", options=ReportOptions(sheets=False))[0])
    heads = page("[...document.querySelectorAll('#grid .column-head')].map(e => e.textContent)")
    assert heads == [f"Seed: {seed}" for seed in range(3)]
