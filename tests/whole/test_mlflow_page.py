"""MLflow's page in headless Chromium, as `diffuse ui` opens it: the pictures of a sweep, without a click.

Skipped without Chromium. Each test has a browser that has never been there, so that nothing is configured in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import browser
import numpy as np
import pytest
from browser import needs_chromium
from command import diffuse, start
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from tracking_servers import end

from diffuse.media.video import Video

pytestmark = needs_chromium

_SMALL = ("hardware=cpu", "hardware.threads=1")
_SEED, _STEPS = (1, 2), (2, 4)
# What the page itself says on the console of MLflow 3.17, whatever it shows: notices of its table, and, by a handler of
# its own, that a layout took one frame more, which browsers report as an event of this text and of no error.
_OWN_NOTICES = re.compile(
    r'"AG Grid: (since v27\.1, `\w+` is deprecated|tried to call sizeColumnsToFit\(\) but the grid is coming back with)'
    r'|null "ResizeObserver loop completed with undelivered notifications\."$'
)
_LABEL = "(e => { while (!e.innerText.trim()) e = e.parentElement; return e.innerText.trim().split('\\n').pop(); })"
_CARD = "[data-testid=experiment-view-compare-runs-card]"
_IMAGES = f"{_CARD} img[src*=get-artifact]"
_DECODED = f"[...document.querySelectorAll('{_IMAGES}')].filter(e => e.complete && e.naturalWidth > 0).length"
# Not merely in the document: what a user would hit there is the picture, and no part of it is beyond the window's edge.
_VISIBLE = (
    "(e => { const b = e.getBoundingClientRect();"
    "return [[.05, .05], [.95, .05], [.05, .95], [.95, .95]].every(([x, y]) => {"
    "const hit = document.elementFromPoint(b.left + x * b.width, b.top + y * b.height);"
    "return hit && (hit === e || e.closest('.rc-image').contains(hit)); }); })(arguments[0])"
)


class Page(browser.Page):
    """MLflow's page."""

    def pictures(self, number: int) -> dict[str, WebElement]:
        """The pictures in the charts, by what stands above them, once `number` of them are decoded."""
        self.until(f"{_DECODED} === {number}")
        found = {str(self(f"{_LABEL}(arguments[0])", image)): image for image in self.all(_IMAGES)}
        assert len(found) == number
        return found

    def text(self) -> str:
        return str(self("document.querySelector('main, #root').innerText"))

    def says(self, text: str) -> None:
        self.until("document.querySelector('main, #root').innerText.includes(arguments[0])", text)

    def click_text(self, text: str) -> None:
        """Clicks on the element that has this text and no other."""
        place = (By.XPATH, f"//*[normalize-space(text())='{text}']")
        self.until("document.evaluate(arguments[0], document, null, 9).singleNodeValue", place[1])
        self.driver.find_element(*place).click()

    def quiet(self, address: str) -> None:
        """Nothing was complained of, and nothing was asked for in vain, or from elsewhere than `address`."""
        said = self.driver.get_log("browser")
        assert [entry for entry in said if not _OWN_NOTICES.search(entry["message"])] == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked, answered = set(), 0
        for event in events:
            if event["method"] == "Network.requestWillBeSent":
                asked.add(event["params"]["request"]["url"])
            if event["method"] == "Network.responseReceived":
                response = event["params"]["response"]
                answered += 1
                assert response["status"] < 400, response["url"]
        assert answered > 10
        own = (f"{address}/", f"blob:{address}/", "data:", "chrome:")  # the last are the browser's empty page
        assert [url for url in asked if not url.startswith(own)] == []


@dataclass
class Shown:
    """A store, what is in it, and where its page is."""

    folder: Path
    link: str
    address: str
    pictures: dict[str, Path]  # of the sweep's jobs, by the names of their runs
    three: list[Path]  # the pictures of one run
    runs: dict[str, Run]  # by their names


@pytest.fixture(scope="module")
def shown(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A run of three pictures, then a sweep of four jobs; and `diffuse ui` on them."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "outputs").mkdir()
    shutil.copy(empty, folder / "outputs" / "mlflow.db")
    three = diffuse("seed=9", "num_images=3", "num_inference_steps=1", "output.name=three", *_SMALL, cwd=folder)
    made = diffuse("-m", "seed=1,2", "num_inference_steps=2,4", *_SMALL, cwd=folder)
    assert (three.status, made.status) == (0, 0), three.err + made.err
    names = [f"seed={seed} steps={steps}" for seed in _SEED for steps in _STEPS]  # in the order that is printed
    pictures = dict(zip(names, (folder / path for path in made.paths), strict=True))
    served = start("ui", cwd=folder, start_new_session=True)
    try:
        assert served.stdout is not None
        link = served.stdout.readline().strip()
        address, _, where = link.partition("/#/experiments/")
        runs = MlflowClient(address).search_runs([where.partition("/")[0]])
        by_name = {str(run.info.run_name): run for run in runs}
        yield Shown(folder, link, address, pictures, [folder / path for path in three.paths], by_name)
    finally:
        end(served)


@pytest.fixture
def page(shown: Shown, tmp_path: Path) -> Iterator[Page]:
    with browser.started(tmp_path / "profile") as driver:
        opened = Page(driver, shown.link)
        yield opened
        opened.quiet(shown.address)


def of_run(page: Page, shown: Shown, run: Run, tab: str = "") -> None:
    page.driver.get(f"{shown.address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{tab}")


def nearest(seen: np.ndarray, files: dict[str, Path]) -> str:
    """Whose picture it is: the preview is a lossy copy."""
    distances = {name: np.abs(seen.astype(np.int16) - pixels(path)).mean() for name, path in files.items()}
    name, distance = min(distances.items(), key=lambda item: item[1])
    assert distance < 8, distances
    return name


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


def test_the_pictures_of_a_sweep_are_visible_at_once(shown: Shown, page: Page) -> None:
    pictures = page.pictures(5)
    assert set(pictures) == {*shown.pictures, "three"}  # one a run
    for name in shown.pictures:
        assert page(_VISIBLE, pictures[name]), name
        assert nearest(page.seen(pictures[name]), shown.pictures) == name
    heads = [text.strip() for text in page.texts("[data-testid=experiment-view-compare-runs-section-header]")]
    assert heads[0].startswith("Pictures") and any(head.startswith("time") for head in heads[1:])
    assert not page.all("[data-assistant-ui] textarea")  # which MLflow would open over a quarter of the page

    pictures["seed=2 steps=4"].click()  # enlarges, with the file itself
    whole = ".rc-image-preview-img"
    page.until(f"document.querySelector('{whole}')?.naturalWidth > 0")
    assert (page.seen(whole) == pixels(shown.pictures["seed=2 steps=4"])).all()


def test_the_pictures_of_a_run_are_seen_one_after_the_other(shown: Shown, page: Page) -> None:
    files = {str(number): path for number, path in enumerate(shown.three)}
    assert nearest(page.seen(page.pictures(5)["three"]), files) == "0"
    (slider,) = page.all(f"{_CARD} [role=slider]")
    page("arguments[0].scrollIntoView({block: 'center'})", slider)
    for step in ("1", "2"):
        slider.send_keys(Keys.ARROW_RIGHT)
        page.until(f"[...document.querySelectorAll('{_IMAGES}')].every(e => e.src.includes('step%2B{step}%2B'))")
        assert nearest(page.seen(page.pictures(1)["three"]), files) == step  # the others have no more than one


def test_a_run_has_its_numbers_and_its_files(shown: Shown, page: Page) -> None:
    run = shown.runs["seed=2 steps=4"]
    of_run(page, shown, run)
    page.says("diffuse.pixels_sha256")
    said = page.text()
    for name, value in {"seed": "2", "num_inference_steps": "4", "scheduler.name": "ddim"}.items():
        assert re.search(rf"^{re.escape(name)}\s+{value}$", said, re.MULTILINE), name
    weights = run.data.tags["diffuse.weights"].rpartition("@")[2]
    assert re.search(rf"Datasets\s+checkpoint \({weights[:36]}\)\s+Weights", said)
    for tag in ("diffuse.sweep", "diffuse.job", "diffuse.version"):
        assert re.search(rf"^{re.escape(tag)}\s*:\s*{re.escape(run.data.tags[tag])}", said, re.MULTILINE), tag

    of_run(page, shown, run, "/model-metrics")
    page.until("document.querySelector('.js-plotly-plot')?.data")
    page.all("[placeholder='Search metric charts']")[0].send_keys("step_s")
    page.until("(p => p.length === 1 && p[0].data[0].type === 'scatter')(document.querySelectorAll('.js-plotly-plot'))")
    plot = page("(d => [[...d.x], [...d.y]])(document.querySelector('.js-plotly-plot').data[0])")
    history = MlflowClient(shown.address).get_metric_history(run.info.run_id, "time/step_s")
    assert plot == [[0, 1, 2, 3], [point.value for point in history]]

    of_run(page, shown, run, "/artifacts")
    file = shown.pictures["seed=2 steps=4"]
    page.click_text("media")
    page.click_text(file.name)
    original = f"img[alt='media/{file.name}']"
    page.until(f'document.querySelector("{original}")?.naturalWidth > 0')
    assert (page.seen(original) == pixels(file)).all()


def test_a_film_is_played(shown: Shown, tmp_path: Path) -> None:
    experiment = "tracking.experiment=films"
    made = diffuse("model=tiny_video", "num_inference_steps=4", experiment, *_SMALL, cwd=shown.folder)
    assert made.status == 0, made.err
    (file,) = (shown.folder / path for path in made.paths)
    linked = diffuse("ui", f"tracking.uri={shown.address}", experiment, cwd=shown.folder)
    with browser.started(tmp_path / "profile") as driver:
        page = Page(driver, linked.out.strip())
        client = MlflowClient(shown.address)
        (run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
        of_run(page, shown, run, "/artifacts")
        page.click_text("media")
        page.click_text(file.name)
        page.until("document.querySelector('video')?.readyState >= 2")
        frames = np.stack([*Video.open(file).each_frame()])
        assert page("(v => [v.videoWidth, v.videoHeight])(document.querySelector('video'))") == [*frames.shape[2:0:-1]]
        assert _nearest_frame(page, frames) == 0
        page("document.querySelector('video').play()")
        page.until("document.querySelector('video').ended")
        assert _nearest_frame(page, frames) == len(frames) - 1
        page.quiet(shown.address)


def _nearest_frame(page: Page, frames: np.ndarray) -> int:
    distances = np.abs(page.seen("video").astype(np.int16) - frames).mean((1, 2, 3))
    assert distances.min() < 8, distances  # a browser fits the colours to its screen
    return int(distances.argmin())


def test_the_sweep_has_its_report(shown: Shown, page: Page) -> None:
    run = shown.runs["seed x num_inference_steps"]
    of_run(page, shown, run)
    page.says("diffuse.kind")
    said = page.text()
    assert re.search(r"^diffuse.kind\s*:\s*sweep", said, re.MULTILINE)
    assert re.search(r"^jobs/made\s+4$", said, re.MULTILINE)
    of_run(page, shown, run, "/artifacts/report/report.html")
    page.until("document.querySelector('iframe')")
    page.driver.switch_to.frame(0)
    page.until("[...document.querySelectorAll('#grid img')].filter(e => e.naturalWidth > 0).length === 4")
    page.driver.switch_to.default_content()


def test_a_sweep_of_more_than_ten_is_seen_on_its_sheet(shown: Shown, tmp_path: Path) -> None:
    """MLflow's chart has the pictures of ten runs, and no more."""
    experiment = "tracking.experiment=large"
    words = ("-m", "seed=range(0,6)", "num_inference_steps=1,2", experiment, "output.dir=large")
    made = diffuse(*words, *_SMALL, cwd=shown.folder)
    assert made.status == 0, made.err
    linked = diffuse("ui", f"tracking.uri={shown.address}", experiment, cwd=shown.folder)
    with browser.started(tmp_path / "profile") as driver:
        page = Page(driver, linked.out.strip())
        page.until(f"document.querySelector('{_IMAGES}')?.naturalWidth > 0")
        first = page.all(_IMAGES)[0]
        assert page(f"{_LABEL}(arguments[0])", first) == "seed x num_inference_steps"  # the sweep's name
        sheet = Image.open(shown.folder / "large" / "report" / "sheet.png").convert("RGB")
        sheet.thumbnail((1024, 1024), Image.Resampling.BICUBIC)
        seen = page.seen(first).astype(np.int16)
        assert seen.shape == (sheet.width, sheet.width, 3)
        assert np.abs(seen[: sheet.height] - np.asarray(sheet, np.int16)).mean() < 4
        left, top, width = page("(b => [b.left, b.top, b.width])(arguments[0].getBoundingClientRect())", first)
        assert left > 0 and left + width < page("innerWidth") and width > 500
        assert top > 0 and top + width * sheet.height / sheet.width < page("innerHeight")
        page.quiet(shown.address)
