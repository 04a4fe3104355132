"""`diffuse ui`: MLflow's own pages on a tracking store, served on loopback until Ctrl-C.

MLflow's server runs as a process of its own, so nothing of MLflow is imported here.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from diffuse.errors import ConfigError, RunError
from diffuse.record.values import redact
from diffuse.schema import TrackingConfig
from diffuse.tracking import app
from diffuse.tracking.address import sqlalchemy_uri
from diffuse.tracking.images import IMAGE_KEY, SHEET_KEY
from diffuse.tracking.store import Store
from diffuse.tracking.tags import LOGGED_IMAGES, SWEEP_KIND
from diffuse.tracking.upgrade import UnusableStore, take_notes

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
_START_SECONDS = 120  # MLflow's imports, on a busy machine
_STOP_SECONDS = 10
_ANSWER_SECONDS = 10
# A fresh browser lands on an empty overview; this shows the charts of all runs.
_VIEW = "workflowType=machine_learning&compareRunsMode=CHART"
# The charts as they would be shared by hand: the pictures of all runs side by side, before any metric.
_SHARED = "pictures"
_RUNS_SHOWN = 10  # MLflow's chart has the pictures of no more; those of a larger sweep are on its contact sheet


def _charts(keys: Sequence[str]) -> dict[str, Any]:
    """Returns the state of the page with a chart for each of `keys`, under which pictures are logged."""
    chart = {"type": "IMAGE", "metricSectionId": "pictures", "step": 0, "showRunParams": False}
    section = {"uuid": "pictures", "name": "Pictures", "columns": 1, "cardHeight": 700, "display": True}
    by_hand = {"isGenerated": False, "deleted": False}
    return {
        "isAccordionReordered": True,  # not by the alphabet
        "runsHiddenMode": "SHOW_ALL",  # not the newest ten, of which one is the sweep itself
        "compareRunCharts": [{**chart, **by_hand, "uuid": f"pictures-{key}", "imageKeys": [key]} for key in keys],
        "compareRunSections": [{**section, **by_hand, "isReordered": False}],
    }


def serve(cfg: TrackingConfig, port: int | None = None, show: Callable[[str], None] = print) -> None:
    """Serves the pages of a store, and shows the link to its pictures. Ctrl-C ends it.

    A store that is a server has its pages already: then it only shows the link. `port` is a free one by default.

    Raises:
        ConfigError: nothing is tracked, nothing has been recorded in the store yet, or the port is taken.
        RunError: MLflow's server does not start, or ended by itself.
    """
    if cfg.name == "none":
        raise ConfigError("tracking=none keeps no runs to show; use tracking=mlflow")
    store = Store.from_config(cfg)
    if store.is_server:
        show(_link(str(redact(re.sub(r"//[^/@]*@", "//", store.uri))).rstrip("/"), store))
        return
    if store.file and not store.file.exists():
        raise ConfigError(f"{store.setting}: nothing is recorded there yet; make a picture first")
    try:
        store.prepare_file()
    except UnusableStore as error:
        raise RunError(f"{store.setting}: {error}") from error
    for line in take_notes():
        log.warning("%s", line)
    port = _free_port(port)
    page = f"http://{HOST}:{port}"
    with tempfile.TemporaryFile() as output:
        server = _start(store, port, output)
        try:
            _wait(server, page, output)
            show(_link(page, store))
            server.wait()
            raise RunError(f"MLflow's server ended by itself: {_last_line(output)}")
        except KeyboardInterrupt:
            return
        finally:
            _stop(server)


def _free_port(port: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"port {port} of {HOST} cannot be used: {reason}; choose another") from error
        return int(probe.getsockname()[1])


def _start(store: Store, port: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    if importlib.metadata.entry_points(group=app.GROUP, name=app.NAME):  # none where diffuse is not installed
        command += ["--app-name", app.NAME]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": sqlalchemy_uri(
            store.uri
        ),  # may hold a password, which arguments would show to everybody
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # evaluation jobs, which are no part of this
    }
    if store.artifacts:
        settings["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = store.artifacts
    return subprocess.Popen(
        command,
        env={**os.environ, **settings},
        cwd=store.file.parent if store.file else None,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the server and its workers
    )


def _wait(server: subprocess.Popen[bytes], page: str, output: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RunError(f"MLflow's server does not start: {_last_line(output)}")
        with suppress(OSError), _get(f"{page}/health"):
            return
        time.sleep(0.25)
    raise RunError(f"MLflow's server did not answer within {_START_SECONDS} s: {_last_line(output)}")


def _link(page: str, store: Store) -> str:
    """Returns the address of the experiment's pictures; of all experiments, where it is not there."""
    if store.experiment_id is None:
        method, query = "get-by-name", urllib.parse.urlencode({"experiment_name": store.experiment})
    else:
        method, query = "get", urllib.parse.urlencode({"experiment_id": store.experiment_id})
    try:
        with _get(f"{page}/api/2.0/mlflow/experiments/{method}?{query}") as answer:
            number = json.load(answer)["experiment"]["experiment_id"]
    except (OSError, ValueError, KeyError):
        return f"{page}/#/experiments"
    link = f"{page}/#/experiments/{number}/runs?{_VIEW}"
    try:
        charts = _charts([SHEET_KEY, IMAGE_KEY] if _is_large_sweep(page, number) else [IMAGE_KEY])
        tag = {"experiment_id": number, "key": f"mlflow.sharedViewState.{_SHARED}", "value": json.dumps(charts)}
        with _get(f"{page}/api/2.0/mlflow/experiments/set-experiment-tag", tag):
            return f"{link}&viewStateShareKey={_SHARED}"
    except (OSError, ValueError, KeyError):  # a server that lets nobody write; its pictures are further down the page
        return link


def _is_large_sweep(page: str, number: str) -> bool:
    """Returns whether the newest run is that of a sweep with a contact sheet and more pictures than the chart has."""
    newest = {"experiment_ids": [number], "max_results": 1, "order_by": ["attributes.start_time DESC"]}
    with _get(f"{page}/api/2.0/mlflow/runs/search", newest) as answer:
        runs = json.load(answer).get("runs", [])
    data = runs[0]["data"] if runs else {}
    tags = {tag["key"]: tag["value"] for tag in data.get("tags", [])}
    jobs = sum(metric["value"] for metric in data.get("metrics", []) if metric["key"] in ("jobs/made", "jobs/there"))
    return tags.items() >= {**SWEEP_KIND, **LOGGED_IMAGES}.items() and jobs > _RUNS_SHOWN


def _get(address: str, posted: dict[str, Any] | None = None) -> Any:
    local = urllib.parse.urlsplit(address).hostname == HOST
    handlers = [urllib.request.ProxyHandler({})] if local else []  # no proxy leads to loopback
    body = None if posted is None else json.dumps(posted).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"} if body else {})
    return urllib.request.build_opener(*handlers).open(request, timeout=_ANSWER_SECONDS)


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a message"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and every process that it started."""
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(server.pid, number)
            else:
                server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
