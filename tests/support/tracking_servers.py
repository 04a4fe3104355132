"""A real MLflow server and a real PostgreSQL, on loopback, which tests start, kill and start again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import LIMIT, current_scope, end, launch


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(address, timeout=LIMIT).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(address)


class MlflowServer:
    """`mlflow server`, which takes artifacts in over HTTP."""

    def __init__(self, backend: str, folder: Path) -> None:
        self._folder = folder
        self._backend = backend
        self._port = unused_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._scope = current_scope()  # of the fixture that made it, also when a test starts it again

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--artifacts-destination", str(self._folder / "kept")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        env = {**os.environ, **settings, "MLFLOW_BACKEND_STORE_URI": self._backend}
        with (self._folder / "log").open("ab") as log:
            self._process = launch(command, cwd=self._folder, env=env, stdout=log, stderr=log, scope=self._scope)
        wait_for(f"{self.address}/health", self._process)

    def kill(self) -> None:
        if self._process is not None:
            end(self._process)


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, which distributions keep out of the search path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """The address of an empty database of a PostgreSQL that forgets all."""
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}  # it refuses to be root
    folder = Path(tempfile.mkdtemp(prefix="diffuse-postgres-"))
    port = unused_port()
    try:
        if user:
            shutil.chown(folder, **user)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
        data = folder / "data"
        initdb = [programs / "initdb", "-D", data, "-U", "diffuse", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, check=True, **quiet)
        options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        server = launch([programs / "postgres", "-D", data, *settings], **quiet)
        try:
            deadline = time.monotonic() + LIMIT
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready, check=False, **quiet).returncode:
                assert server.poll() is None and time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.1)
            yield f"postgresql+psycopg://diffuse:hunter2@127.0.0.1:{port}/postgres"
        finally:
            end(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
