"""The prediction of a run beside what was measured, in its record and its metrics."""

from __future__ import annotations

from typing import Any

import pytest

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.plan import recorded
from diffuse.record.validate import check_record
from diffuse.run import run as running
from diffuse.run.generation import Generation
from diffuse.run.run import generate

BASE = ("hardware=cpu", "hardware.threads=1", "tracking=none", "prompt=a cactus", "seed=1", "num_inference_steps=1")


def made(*overrides: str) -> Generation:
    cfg = compose_config([*BASE, *overrides])
    (generation,) = generate(cfg, draft_requests(cfg))
    return generation


def test_a_run_under_a_budget_records_both() -> None:
    generation = made("hardware.vram_gb=4", "memory_profile=full_gpu")
    memory = generation.record["memory"]
    assert set(memory) == {"predicted", "measured"} and set(memory["predicted"]) == set(memory["measured"])
    assert 0.2 < memory["predicted"]["rss_peak_gib"] < 8
    assert generation.metrics["memory/predicted_rss_peak_gib"] == memory["predicted"]["rss_peak_gib"]
    assert generation.metrics["memory/rss_peak_gib"] == pytest.approx(memory["measured"]["rss_peak_gib"], abs=1e-3)
    check_record(generation.record, "the record")


def test_a_short_run_without_a_budget_predicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generation = made("memory_profile=full_gpu")
    assert "memory" not in generation.record
    assert not [name for name in generation.metrics if "predicted" in name]
    monkeypatch.setattr(running, "PREDICTED_FROM_S", generation.timings["total_s"] / 1e6)
    assert "memory" in made("memory_profile=full_gpu").record


def test_a_prediction_that_fails_loses_no_picture(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("an operator without a shape")

    monkeypatch.setattr(recorded, "predict", fail)
    generation = made("hardware.vram_gb=4", "memory_profile=cpu_only")
    assert "memory" not in generation.record and len(generation.frames) == 1
