"""Runs, sweeps and reports read back from a store."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracked_runs import settings

from diffuse import tracking
from diffuse.errors import ConfigError
from diffuse.tracking.query import StoreReader
from diffuse.tracking.tags import SWEEP_KIND


def test_the_summary_of_a_sweep_has_its_files(store: Path, tmp_path: Path) -> None:
    page, sheet = tmp_path / "report.html", tmp_path / "sheet.txt"
    page.write_text("<p>the report</p>")
    sheet.write_text("a sheet")
    tracker = tracking.open_tracker(settings(store))
    job = tracker.start("job", {}, {"diffuse.sweep": "0123abcd"}, {})
    job.finish()
    run = tracker.start("sweep", {}, {"diffuse.sweep": "0123abcd", **SWEEP_KIND}, {})
    run.log_files("report", [page, sheet])
    run.finish()
    assert tracker.close() == []
    reader = StoreReader(settings(store))
    assert [found.run_id for found in reader.sweep("0123")] == [job.run_id]
    summary = reader.run(str(run.id))
    assert summary.tags["diffuse.kind"] == "sweep"
    files = reader.fetch(summary, "report", tmp_path / "fetched")
    assert [path.read_text() for path in files] == ["<p>the report</p>", "a sheet"]
    page.write_text("<p>another</p>")
    tracker = tracking.open_tracker(settings(store))
    again = tracker.start("sweep", {}, {}, {}, id=run.id, again=True)
    again.log_files("report", [page, tmp_path / "gone"])
    again.finish()
    (warning,) = tracker.close()
    assert "gone is gone" in warning
    files = reader.fetch(summary, "report", tmp_path / "again")
    assert [(path.name, path.read_text()) for path in files] == [("report.html", "<p>another</p>")]
    with pytest.raises(ConfigError, match="there is no sweep"):
        reader.sweep("ffff")
    with pytest.raises(ConfigError, match="there is no run"):
        reader.run("ffff")
    with pytest.raises(ConfigError, match="there is no experiment"):
        reader.experiment("nowhere")
