"""The folder of a sweep: any name, and one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from sweeps import swept

from diffuse.errors import MediaError
from diffuse.sweep.folder import Sweep, open_sweep_folder


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    taken = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(taken, fcntl.LOCK_EX)
    done = swept("seed=1,2", "num_inference_steps=1", cwd=tmp_path, status=2)
    assert "out: another process makes a sweep in it" in done.err and not list((tmp_path / "out").iterdir())
    os.close(taken)  # as the end of a process does, however it comes
    assert len(swept("seed=1,2", "num_inference_steps=1", cwd=tmp_path).paths) == 2


def test_any_name_of_a_folder(tmp_path: Path) -> None:
    done = swept("seed=1,2", "num_inference_steps=1", "output.dir=a, (b) = [c]/caf\udce9", cwd=tmp_path)
    assert len(list((tmp_path / "a, (b) = [c]" / "caf\udce9").glob("seed_*/*.png"))) == len(done.paths) == 2


def test_only_what_cannot_be_written_there_is_about_the_folder(tmp_path: Path) -> None:
    sweep = Sweep("x", "x", tmp_path / "out", [], [])
    with pytest.raises(FileNotFoundError), open_sweep_folder(sweep):
        (tmp_path / "nothing here").read_text()
    with pytest.raises(MediaError, match=r"output.dir: .*out/report cannot be written"), open_sweep_folder(sweep):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "out" / "report"))


def test_a_folder_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open_sweep_folder(Sweep("x", "x", tmp_path / "out", [], [])):
        pass
    assert "out cannot be locked here: start no second command that makes the same sweep" in caplog.text
