"""A run whose record the tests of this room read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import smoke
from PIL import Image

OVERRIDES = ("prompt=a pear, (green)", "num_images=2", "seed=40", "output.dir=out")


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures of one run."""
    folder = tmp_path_factory.mktemp("pictures")
    return [folder / path for path in smoke(*OVERRIDES, cwd=folder).paths]


@pytest.fixture
def made(pictures: list[Path]) -> dict[str, Any]:
    """The record inside the second of them, as Pillow finds it."""
    with Image.open(pictures[1]) as picture:
        found: dict[str, Any] = json.loads(picture.info["diffuse"])
    return found
