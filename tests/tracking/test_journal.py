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
from tracked_runs import settings, spooled

from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking.store import Store
from diffuse.tracking.sync import sync as deliver
from diffuse.tracking.tracker import JournaledRun, JournaledTracker


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


def test_a_journal_that_cannot_be_made_is_refused_beforehand(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = diffuse(
        *SMOKE, f"tracking.uri=sqlite:///{store}", "tracking.journal=file/journal", "output.dir=out", cwd=tmp_path
    )
    assert (done.status, done.paths) == (2, [])
    (line,) = done.err.splitlines()
    assert line.startswith("diffuse: tracking.journal=file/journal: ") and "is a file" in line


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and folders that were written to the disk for good, in their order."""
    order: list[Path] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return order


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are looked up in Linux's /proc")
@pytest.mark.parametrize("end", [{}, {"error": "failed"}, {"error": "stopped", "interrupted": True}], ids=str)
def test_the_end_of_a_run_is_on_disk_once(end: dict[str, Any], tmp_path: Path, synced: list[Path]) -> None:
    """Its file, when the run ends; and who the spool is for, when that begins."""
    spool = journal.Spool(Store.from_config(settings(tmp_path / "new" / "mlflow.db")))
    assert synced[0].name == "store.json" and {spool.folder, spool.folder.parent, tmp_path} <= set(synced)
    tracker = JournaledTracker.__new__(JournaledTracker)
    for _ in range(2):
        synced.clear()
        entry = spool.entry()
        run = JournaledRun(tracker, entry, "id")
        run.write({"begin": {"id": "id", "name": "run", "time": 1, "again": False}, "params": {}, "tags": {}})
        run.log_steps([0.5])
        run.set_tags({"a": "b"})
        assert synced == []  # nothing waits for the disk before
        entry.append({"end": "FINISHED", **end})
        assert synced == [entry.file]


def test_a_disk_that_fails_to_keep_the_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = journal.Entry(tmp_path / "run.jsonl")
    entry.append({"begin": 1})
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        entry.append({"end": "FINISHED"})
    monkeypatch.undo()
    entry.append({"tags": {}})  # and nothing is written twice
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 3
