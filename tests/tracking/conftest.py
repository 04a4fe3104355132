"""A tracking store, a picture and a recorded run for the tests of this room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from tracked_runs import PROMPT, artifacts, make, runs


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "mlflow.db"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.radial_gradient("L").resize((64, 64)).save(path)
    return path


@pytest.fixture(scope="session")
def recorded(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path], Path]:
    """A run of two pictures in three steps: its store, its folder, the pictures and the fetched artifacts."""
    folder = tmp_path_factory.mktemp("recorded")
    store = Path(shutil.copy(empty, folder / "mlflow.db"))
    done = make(store, folder, f"prompt={PROMPT}", "seed=7", "num_images=2", "num_inference_steps=3")
    (run,) = runs(store)
    return store, folder, [folder / path for path in done.paths], artifacts(store, run, folder / "fetched")
