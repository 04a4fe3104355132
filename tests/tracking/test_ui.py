"""`diffuse ui`: MLflow's pages on loopback, and their link."""

from __future__ import annotations

import re
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from command import diffuse, start
from processes import LIMIT, end
from tracked_runs import PROMPT, client, runs, settings
from tracking_servers import unused_port

from diffuse.errors import ConfigError
from diffuse.tracking import ui


def test_ui_serves_the_store_on_loopback_and_prints_the_link(recorded: Any, tmp_path: Path) -> None:
    store, *_ = recorded
    page = start("ui", f"tracking.uri=sqlite:///{store}", cwd=tmp_path)
    try:
        assert page.stdout is not None
        link = page.stdout.readline().strip()
        number = r"(http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs"
        found = re.fullmatch(number + r"\?workflowType=machine_learning&compareRunsMode=CHART(&.*)?", link)
        assert found, link
        with urllib.request.urlopen(f"{found[1]}/", timeout=LIMIT) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        over_http = runs(found[1])
        assert [run.data.params["prompt"] for run in over_http] == [PROMPT]
        assert over_http[0].info.experiment_id == found[2]
        (image,) = client(found[1]).list_artifacts(over_http[0].info.run_id, "media")[:1]
        query = f"path={image.path}&run_uuid={over_http[0].info.run_id}"
        with urllib.request.urlopen(f"{found[1]}/get-artifact?{query}", timeout=LIMIT) as answer:
            assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
        page.send_signal(signal.SIGINT)
        out, err = page.communicate(timeout=LIMIT)
        assert (page.returncode, out) == (0, ""), err
        assert "Traceback" not in err
        with pytest.raises(OSError):
            urllib.request.urlopen(found[1], timeout=LIMIT)
    finally:
        end(page)


def test_ui_without_a_store(tmp_path: Path) -> None:
    for override, said in (
        ("tracking.uri=sqlite:///none.db", "nothing is recorded"),
        ("tracking=none", "keeps no runs"),
    ):
        done = diffuse("ui", override, cwd=tmp_path)
        assert (done.status, done.out) == (2, "")
        assert said in done.err and len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_ui_of_a_server_only_gives_its_link(capsys: pytest.CaptureFixture[str]) -> None:
    ui.serve(settings(f"http://name:secret@127.0.0.1:{unused_port()}/"))
    printed = capsys.readouterr().out
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#/experiments\n", printed)


def test_a_taken_port_is_said(recorded: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be used"):
        ui.serve(settings(recorded[0]), port=taken.getsockname()[1])
