"""The load of the machine while a run goes on, under the names that MLflow's page shows as system metrics."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

INTERVAL_SECONDS = 10.0  # as MLflow samples


class SystemMetrics:
    """Samples processor, memory, disk, network and NVIDIA GPUs. The first sample is due after one interval."""

    def __init__(self) -> None:
        self._next = 0.0
        self._network: tuple[float, float] | None = None  # megabytes since the machine started, at the first call
        self._gpus: list[Any] = []

    def sample(self) -> dict[str, float]:
        """Returns the metrics by name if a sample is due, otherwise none."""
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + INTERVAL_SECONDS
        import psutil

        if self._network is None:
            psutil.cpu_percent()  # the next call gives the load since this one
            self._network = _network_megabytes()
            self._gpus = _gpus()
            return {}
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        received, sent = (now - before for now, before in zip(_network_megabytes(), self._network, strict=True))
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": received,
            "network_transmit_megabytes": sent,
        }
        for number, gpu in enumerate(self._gpus):
            values |= {f"gpu_{number}_{name}": value for name, value in _gpu_values(gpu).items()}
        return {f"system/{name}": round(float(value), 3) for name, value in values.items()}


def _network_megabytes() -> tuple[float, float]:
    import psutil

    counters = psutil.net_io_counters()
    return (counters.bytes_recv / 1e6, counters.bytes_sent / 1e6) if counters else (0.0, 0.0)


def _gpus() -> list[Any]:
    with suppress(Exception):  # there is no driver, or no GPU; NVML has an error for each reason
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    return []


def _gpu_values(gpu: Any) -> dict[str, float]:
    """Returns what the GPU tells; not every GPU tells everything."""
    import pynvml

    values: dict[str, float] = {}
    with suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        values["memory_usage_percentage"] = memory.used / memory.total * 100
        values["memory_usage_megabytes"] = memory.used / 1e6
    with suppress(pynvml.NVMLError):
        values["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
    with suppress(pynvml.NVMLError):
        milliwatts = pynvml.nvmlDeviceGetPowerUsage(gpu)
        values["power_usage_watts"] = milliwatts / 1000
        values["power_usage_percentage"] = milliwatts / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) * 100
    return values
