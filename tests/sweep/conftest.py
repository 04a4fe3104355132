"""Fixtures of several files here."""

from __future__ import annotations

from typing import Any

import pytest

from diffuse.run import run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The batches that were made, each as the requests in it."""
    batches = []
    make = run.make

    def watched(jobs: Any, *rest: Any) -> Any:
        batches.append([{"source": each.cfg.model.source, **vars(each.request)} for each in jobs])
        return make(jobs, *rest)

    monkeypatch.setattr(run, "make", watched)
    return batches
