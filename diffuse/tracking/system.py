"""What the machine does while a run goes on, by MLflow's own monitors: what its page shows as system metrics."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

INTERVAL_SECONDS = 10.0  # MLflow's own


class System:
    """Samples processor, memory, disk, network and GPUs. The first sample is due after one interval."""

    def __init__(self) -> None:
        self._monitors: list[Any] = []
        self._next = 0.0

    def sample(self) -> dict[str, float]:
        """The metrics by name if a sample is due, otherwise nothing."""
        now = time.monotonic()
        if now < self._next:
            return {}
        first = not self._monitors
        if first:
            self._monitors = _monitors()
        self._next = now + INTERVAL_SECONDS
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return {} if first else found  # rates are counted from here on


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # there is no driver, or no GPU; NVML has an error for each reason
        monitors.append(GPUMonitor())
    return monitors
