"""The journal on disk: torn lines, passwords, a disk that is full."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import SMOKE, diffuse
from PIL import Image
from tracked_runs import spooled

from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking.sync import sync as deliver


def test_a_password_is_not_left_in_the_journal(picture: Path, tmp_path: Path) -> None:
    journal = str(tmp_path / "pending")
    cfg = TrackingConfig(name="mlflow", uri="http://name:hunter2@127.0.0.1:9/", journal=journal)
    folder = spooled(cfg, picture)
    assert not any(b"hunter2" in path.read_bytes() for path in folder.iterdir())
    said: list[str] = []
    with pytest.raises(Exception, match="1 run could not be delivered"):
        deliver(TrackingConfig(name="mlflow", uri=f"sqlite:///{tmp_path}/x.db", journal=journal), said.append)
    assert "password" in said[0]
    said.clear()
    with pytest.raises(Exception, match="1 run could not be delivered"):
        deliver(cfg, said.append)
    assert "does not answer" in said[0] and "hunter2" not in said[0]


def test_a_full_disk_tears_no_line_and_what_was_not_written_follows(tmp_path: Path, monkeypatch: Any) -> None:
    entry = journal.Entry(tmp_path / "run.jsonl")
    entry.append({"n": 1})
    before = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 5:
            return before(handle, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError):
            entry.append({"n": 2})
    assert journal.read_events(entry.file)[0] == [{"n": 1}]
    entry.append({"n": 3})
    assert journal.read_events(entry.file)[0] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_journal_on_a_full_disk_costs_no_picture(store: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", small], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        done = diffuse(
            *SMOKE, f"tracking.uri=sqlite:///{store}", f"tracking.journal={small}/journal", "output.dir=out",
            cwd=tmp_path,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    assert done.status == 0
    assert Image.open(tmp_path / done.paths[0]).size == (64, 64)
    warnings = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "No space left" in warnings[0] and "saved all the same" in warnings[0]


def test_a_journal_that_cannot_be_made_costs_no_picture(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = diffuse(
        *SMOKE, f"tracking.uri=sqlite:///{store}", "tracking.journal=file/journal", "output.dir=out", cwd=tmp_path
    )
    assert done.status == 0 and len(done.paths) == 1
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert "file" in warning and "not tracked" in warning
