"""The command as its users run it: in this process, which is quick, or in a process of its own."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from processes import LIMIT, launch

from diffuse.cli import main as cli

# The shortest run that goes through everything.
SMOKE = (
    "model=tiny",
    "hardware=cpu",
    "seed=0",
    "num_inference_steps=1",
    "hardware.threads=1",
    "memory_profile=cpu_only",
)


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def paths(self) -> list[Path]:
        return [Path(line) for line in self.out.splitlines()]


def diffuse(*arguments: Any, cwd: Path) -> Done:
    """`diffuse ARGUMENTS` in this process, which then keeps the pipeline for the next one."""
    out, err = io.StringIO(), io.StringIO()
    status = exit_status(*arguments, cwd=cwd, out=out, err=err)
    return Done(status, out.getvalue(), err.getvalue())


def exit_status(*arguments: Any, cwd: Path, out: TextIO, err: TextIO) -> Any:
    """What `diffuse ARGUMENTS` in this process ends with, its streams being `out` and `err`."""
    with log_kept(), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code


@contextmanager
def log_kept() -> Iterator[None]:
    """The command takes the library's log for itself; afterwards it is as before."""
    log = logging.getLogger("diffuse")
    before = log.handlers, log.propagate, log.level
    try:
        yield
    finally:
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])


def smoke(*arguments: Any, cwd: Path) -> Done:
    """The shortest run, untracked unless `arguments` say otherwise; it must succeed."""
    done = diffuse(*SMOKE, "tracking=none", *arguments, cwd=cwd)
    assert done.status == 0, done.err
    return done


def start(*arguments: Any, cwd: Path, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
    """`diffuse ARGUMENTS` in a process of its own, which ends with the test at the latest."""
    command = [sys.executable, "-m", "diffuse", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return launch(command, cwd=cwd, env={**os.environ, **(env or {})}, **{**streams, **options})


def finished(process: subprocess.Popen[Any]) -> Done:
    """Waits for a process that `start` began."""
    out, err = process.communicate(timeout=LIMIT)
    return Done(process.returncode, out or "", err or "")


def jobs_in(folder: Path) -> list[dict[str, Any]]:
    """What the jobs of the sweep in `folder` say of themselves."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/job.json"))]


def until(ready: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """What `ready` gives as soon as it gives something. Meanwhile `process` has to live."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if found := ready():
            return found
        assert process is None or process.poll() is None
        time.sleep(0.02)
    raise AssertionError("it never came")
