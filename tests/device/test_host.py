"""The computer itself. What `/proc` and the system say is right, or is left out."""

from __future__ import annotations

import os
import platform

import psutil
import pytest

from diffuse.device import host


def test_the_processor() -> None:
    assert host.cpu_name()
    cores, usable = host.cpu_cores()
    assert cores == os.cpu_count() and 1 <= usable <= cores


@pytest.mark.skipif(platform.system() != "Linux", reason="no /proc")
def test_main_memory() -> None:
    assert host.total_ram() == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert 0 < host.available_ram() <= host.total_ram()
    assert 0 <= host.container_ram_limit() < host.total_ram()


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("model name\t: A CPU\nflags\t\t: sse avx512_bf16\n", ("A CPU", True)),
        ("model name\t: A CPU\nflags\t\t: sse avx2\n", ("A CPU", False)),
        ("Features\t: fp asimd bf16\n", (platform.processor() or platform.machine(), True)),
        ("", (platform.processor() or platform.machine(), None)),
    ],
)
def test_what_linux_tells_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, description: str, expected: tuple[str, bool | None]
) -> None:
    monkeypatch.setattr(host.Path, "read_text", lambda *_, **__: description)
    assert (host.cpu_name(), host.cpu_has_bfloat16()) == expected
