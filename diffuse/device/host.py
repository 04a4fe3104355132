"""The computer itself: its processor, and the main memory that this process may use.

A value that the system does not tell is empty, 0 or None; nothing here raises. torch is not imported.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's marketing name where the system tells it, otherwise its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_has_bfloat16() -> bool | None:
    """Returns true where the processor has bfloat16 arithmetic; None where the system does not tell."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)) if flags else None


def cpu_cores() -> tuple[int, int]:
    """Returns how many cores there are, and how many of them this process may use."""
    cores = os.cpu_count() or 1
    return cores, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores


def total_ram() -> int:
    """Returns the bytes of main memory; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 0


def available_ram() -> int:
    """Returns the bytes of main memory that programs can still get; 0 where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def container_ram_limit() -> int:
    """Returns the bytes that a container's memory is limited to; 0 where it is not, or the system does not tell."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdigit() and int(text) < total_ram() else 0


def _cpuinfo(field: str) -> str:
    """Returns the first value of `field` in Linux's description of the processors; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
