"""Fixtures of several files here."""

from __future__ import annotations

from typing import Any

import pytest

from diffuse.run import run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The batches that were made, each as the requests in it."""
    batches = []
    compute = run.compute

    def watched(jobs: Any, *rest: Any) -> Any:
        batches.append([{"source": each.cfg.model.source, **vars(each.request)} for each in jobs])
        return compute(jobs, *rest)

    monkeypatch.setattr(run, "compute", watched)
    return batches
