"""Commands in processes of their own that cost no start: a process that has imported everything forks one for each.

Such a process can be made to run out of disk space, or to die at once: at its n-th touch of a file, or in the middle of
writing one. Run as a script it is that server: requests and answers are JSON, one a line.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from processes import launch

TOUCHES = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "sqlite3.connect")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, or minus the signal that killed it; and what it did to files, in order."""

    status: int
    out: str
    err: str
    touched: list[str]


class ForkServer:
    """Starts commands. `log` is a folder for what they print."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    def run(
        self,
        *arguments: Any,
        cwd: Path,
        file_bytes: int | None = None,
        die_when_full: bool = False,
        kill_at: int | None = None,
        kill_after: str | None = None,
    ) -> Ended:
        """`diffuse ARGUMENTS` in `cwd`.

        No file can grow beyond `file_bytes`: writing more fails, as on a full disk, or with `die_when_full` ends the
        process there and then. Before touch number `kill_at`, from 0, of a file below `cwd` it gets SIGKILL; with
        `kill_after` before the first touch once a file of that name is whole, however its threads take turns.
        """
        request = {"arguments": [str(a) for a in arguments], "cwd": str(cwd), "log": str(self.log)}
        limits = {
            "file_bytes": file_bytes,
            "die_when_full": die_when_full,
            "kill_at": kill_at,
            "kill_after": kill_after,
        }
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request | limits) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        out, err, touched = ((self.log / name).read_text() for name in ("out", "err", "touched"))
        return Ended(status, out, err, touched.splitlines())


@contextmanager
def fork_server(log: Path) -> Iterator[ForkServer]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # a thread would be missing in the fork
    command = [sys.executable, __file__]
    with launch(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield ForkServer(process, log)
        assert process.stdin
        process.stdin.close()


def _serve() -> None:
    for module in ("run.run", "pipelines.stable_diffusion", "pipelines.ltx2", "tracking.worker"):
        importlib.import_module(f"diffuse.{module}")
    from diffuse.tracking.mlflow_store import import_mlflow

    import_mlflow()
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _command(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _command(
    arguments: list[str],
    cwd: str,
    log: str,
    file_bytes: int | None,
    die_when_full: bool,
    kill_at: int | None,
    kill_after: str | None,
) -> None:
    from diffuse.cli import main as cli

    os.chdir(cwd)
    _fork_delivery()
    for number, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(f"{log}/{name}", os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    touched = os.open(f"{log}/touched", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    count = 0
    renaming: int | None = None  # the thread that gives a file the name of `kill_after`

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, renaming
        if event not in TOUCHES or (event == "open" and not args[2] & _WRITING):
            return
        if isinstance(args[0], int) or not args[0] or not os.path.abspath(os.fsdecode(args[0])).startswith(cwd):
            return
        if count == kill_at or renaming == threading.get_ident():
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        if event == "os.rename" and os.path.basename(os.fsdecode(args[1])) == kill_after:
            renaming = threading.get_ident()
        os.write(touched, f"{event} {os.path.relpath(os.fsdecode(args[0]), cwd)}\n".encode())

    sys.addaudithook(watch)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if die_when_full:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    status: Any = 1
    try:
        cli.main(arguments)
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Delivery:
    """The process that delivers to MLflow, forked, as the `subprocess.Popen` that the command expects."""

    def __init__(self) -> None:
        (inbox, to), (back, outbox) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _deliver(inbox, outbox, to, back)
        os.close(inbox)
        os.close(outbox)
        self.stdin, self.stdout = os.fdopen(to, "w", encoding="utf-8"), os.fdopen(back, encoding="utf-8")
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _deliver(inbox: int, outbox: int, *others: int) -> NoReturn:
    from diffuse.tracking import worker

    os.setsid()
    for number in others:
        os.close(number)
    for number, stream in enumerate((inbox, outbox, os.open(os.devnull, os.O_RDWR))):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
    try:
        worker.main()
    finally:
        os._exit(0)


def _fork_delivery() -> None:
    """Has the command find its first process of that kind already there, which saves the seconds of importing MLflow.

    It is forked now, as long as nobody counts touches, no file is limited in its size and there is one thread.
    """
    from diffuse.tracking import process

    popen, forked = subprocess.Popen, [_Delivery()]

    def start(*arguments: Any, **options: Any) -> Any:
        return forked.pop() if forked else popen(*arguments, **options)

    process.subprocess = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]


if __name__ == "__main__":
    _serve()
