"""A page in headless Chromium, as tests drive it: in a profile of its own, like a browser that has seen nothing yet."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import LIMIT
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

_CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
_DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (_CHROMIUM and _DRIVER), reason="needs chromium and chromedriver")

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,900"
)


@contextmanager
def started(profile: Path) -> Iterator[webdriver.Chrome]:
    """Chromium, with an empty folder as its profile. It logs what the console says, and every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(_CHROMIUM)
    for flag in (*_FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(_DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """An open page."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(address)

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str, number: int = 0) -> None:
        self.all(selector)[number].click()

    def until(self, script: str, *arguments: Any) -> Any:
        wait = WebDriverWait(self.driver, LIMIT, 0.05, [StaleElementReferenceException])
        return wait.until(lambda _: self(script, *arguments), script)

    def texts(self, selector: str) -> list[str]:
        return list(self("[...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def seen(self, element: str | WebElement) -> np.ndarray:
        """The pixels of an image or a video, an element or its selector, drawn to a canvas of its own size."""
        if isinstance(element, str):
            element = self.all(element)[0]
        data = self(
            "(e => { const c = document.createElement('canvas'); c.width = e.naturalWidth || e.videoWidth;"
            "c.height = e.naturalHeight || e.videoHeight; c.getContext('2d').drawImage(e, 0, 0);"
            "return c.toDataURL('image/png').split(',')[1]; })(arguments[0])",
            element,
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
