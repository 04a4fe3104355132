"""The hub that the tests of checkpoints ask: a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_files import HALF, NAME, NOT_NEEDED, PLAIN, SMALL
from hub_server import HubServer, Repository
from huggingface_hub import constants


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({NAME: Repository({**SMALL, **PLAIN, **HALF, **NOT_NEEDED})}) as running:
        running.is_the_hub(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield running
