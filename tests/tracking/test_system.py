"""Samples of the machine's load."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked_runs import runs, settings

from diffuse.tracking import delivery, journal, system, worker
from diffuse.tracking.store import Store


def test_a_run_that_goes_on_gets_system_metrics(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "_LIVE_SECONDS", 0.0)
    address = Store.from_config(settings(store))
    spool = journal.Spool(address)
    entry = spool.entry()
    begin = {"id": "long", "name": "long", "time": 1000, "again": False}
    entry.append({"time": 1000, "begin": begin, "params": {}})
    work = worker.SpoolWorker(spool.folder, address, lambda message: None)
    for _ in range(6):
        work.step()
    entry.append({"time": 2000, "end": "FINISHED"})
    assert work.close(orphaned=True) == []
    (run,) = runs(store)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
    history = MlflowClient(address.uri).get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert len(history) > 1 and [row.step for row in history] == list(range(len(history)))
    spool.close()


def test_the_first_sample_comes_after_one_interval_under_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = system.SystemMetrics()
    assert metrics.sample() == {}
    assert metrics.sample() == {}  # it is not due yet
    monkeypatch.setattr(system, "INTERVAL_SECONDS", 0.0)
    metrics = system.SystemMetrics()
    assert metrics.sample() == {}
    names = {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
        "disk_usage_percentage",
        "disk_usage_megabytes",
        "disk_available_megabytes",
        "network_receive_megabytes",
        "network_transmit_megabytes",
    }
    sample = metrics.sample()
    assert {name for name in sample if "gpu" not in name} == {f"system/{name}" for name in names}
    assert all(value >= 0 for value in sample.values())
