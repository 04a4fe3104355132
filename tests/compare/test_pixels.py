"""The frames of a cell."""

from __future__ import annotations

from pathlib import Path

from compared import refused, sweep


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8))
    damaged = tmp_path / "s" / "1-4" / "seed1_steps4.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert "seed1_steps4.png" in refused("s", cwd=tmp_path)
