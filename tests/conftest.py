"""What several files of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse import tracking
from diffuse.request import TrackingConfig


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store without runs, which costs seconds to make and nothing to copy."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    tracker = tracking.open_tracker(TrackingConfig(name="mlflow", uri=f"sqlite:///{file}", experiment="Default"))
    assert tracker.close() == []
    return file
