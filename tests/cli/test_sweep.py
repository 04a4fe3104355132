"""`diffuse -m` as a whole; see `tests/sweep` for its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import diffuse
from sweeps import QUICK

from diffuse.compare import report


def test_the_report_costs_a_sweep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("-m", *QUICK, "report.make=true", "seed=1,2", "num_inference_steps=1")

    def broken(folder: Path, options: Any = None) -> list[Path]:
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(report, "compare_folder", broken)
        done = diffuse(*command, cwd=tmp_path)
    assert done.status == 0 and len(done.paths) == 2 and "warning: there is no report: OSError: no room" in done.err
    done = diffuse(*command, cwd=tmp_path)  # all is there but the report
    assert done.status == 0 and "report out/report/" in done.err, done.err
    assert "report out/report/" not in diffuse(*command, cwd=tmp_path).err
