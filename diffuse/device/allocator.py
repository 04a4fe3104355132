"""Memory of the device and of this process: how much is held now, and the most that was."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar

import torch

CUDA_CONTEXT = 1 << 29  # bytes of a card outside the allocator: the context and the libraries' code, 0.3-0.6 GiB
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


class Allocator:
    """The memory of a device as its allocator counts it, in bytes. This one is the CPU's, which keeps no cache."""

    def reset_peak(self) -> None:
        """Starts the count of the peak again from what is held now."""

    def limit(self, nbytes: int | None) -> None:
        """Lets the device give out no more than so many bytes, its own overhead among them; None for all it has."""

    def sample(self) -> None:
        """Updates the peak, where the allocator keeps none itself."""

    def synchronize(self) -> None:
        """Waits until the device has finished its queued work."""

    def empty(self) -> None:
        """Gives cached memory back to the device."""

    def peak(self) -> int:
        """Returns the most bytes that tensors have held at once."""
        return 0

    def releasable(self) -> int:
        """Returns the bytes that `empty` would give back."""
        return 0


class _CudaAllocator(Allocator):
    is_limited: ClassVar[bool] = False  # of the process, which several pipelines share

    def __init__(self) -> None:
        torch.cuda.init()  # its statistics do not exist before

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(0)

    def limit(self, nbytes: int | None) -> None:
        if nbytes is not None or self.is_limited:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(allocator_share(nbytes, total), 0)
            _CudaAllocator.is_limited = nbytes is not None

    def synchronize(self) -> None:
        torch.cuda.synchronize(0)

    def empty(self) -> None:
        torch.cuda.empty_cache()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(0)

    def releasable(self) -> int:
        stats = torch.cuda.memory_stats(0)
        held = stats.get("active_bytes.all.current", 0) + stats.get("inactive_split_bytes.all.current", 0)
        return int(stats.get("reserved_bytes.all.current", 0)) - int(held)


class _MpsAllocator(Allocator):
    """The memory of Metal, which keeps no peak: it is the largest of the samples taken after steps and phases."""

    def __init__(self) -> None:
        self._peak = 0

    def reset_peak(self) -> None:
        self._peak = torch.mps.current_allocated_memory()

    def sample(self) -> None:
        self._peak = max(self._peak, torch.mps.current_allocated_memory())

    def synchronize(self) -> None:
        torch.mps.synchronize()

    def empty(self) -> None:
        torch.mps.empty_cache()

    def peak(self) -> int:
        return self._peak

    def releasable(self) -> int:
        return torch.mps.driver_allocated_memory() - torch.mps.current_allocated_memory()


def allocator_of(device: torch.device) -> Allocator:
    """Returns the allocator of a torch device."""
    kinds: dict[str, Callable[[], Allocator]] = {"cuda": _CudaAllocator, "mps": _MpsAllocator}
    return kinds.get(device.type, Allocator)()


def allocator_share(nbytes: int | None, total: int) -> float:
    """Returns the share of a card's memory, from 0 to 1, that its allocator may take where `nbytes` are to be used."""
    if nbytes is None:
        return 1.0
    return min(max(nbytes - CUDA_CONTEXT, 0) / total, 1.0)


def keep_freed_memory() -> None:
    """Tells the C library to keep memory that tensors free for the next ones, up to 128 MiB at a time.

    glibc gives large blocks back to Linux as soon as they are free, and Linux zeroes each page of the next ones anew,
    which is some 4% of a small U-Net's time. Its thresholds adapt, but late. What the user has set in the environment
    stays; another library has no `mallopt`.
    """
    _set_thresholds(32 << 20, 128 << 20)  # bytes; no more can be asked for of the first


def give_freed_memory_back() -> None:
    """Tells the C library to give memory back as soon as it is free, for a budget of main memory that counts it."""
    _set_thresholds(128 << 10, 128 << 10)


@lru_cache(maxsize=1)  # of the last setting
def _set_thresholds(mapped: int, trimmed: int) -> None:
    """Sets the bytes from which a block is mapped by itself, and those that may be free at the end of the heap."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, mapped)
        mallopt(_TRIM_THRESHOLD, trimmed)


def reset_rss_peak() -> None:
    """Starts the count of this process's peak memory again on Linux; elsewhere it counts from the process's start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@cache
def program_bytes() -> int:
    """Returns the bytes of main memory that the process held when this was first called, before it read weights."""
    return rss_now()


def rss_now() -> int:
    """Returns the bytes of the process's resident set, mapped files included; 0 where the system does not tell."""
    with suppress(ImportError, OSError):
        import psutil

        return int(psutil.Process().memory_info().rss)
    return 0


def rss_peak() -> int:
    """Returns the bytes of the process's largest resident set, mapped files included."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    with suppress(ImportError):  # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    return 0
