"""The folder of a sweep: any name, and one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sweeps import swept


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
