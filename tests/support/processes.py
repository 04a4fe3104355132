"""Processes that tests start. They end with the test, however it ends, and none outlives the suite."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

# Seconds after which nothing more will come: a guard against hangs alone, on a machine ten times as slow as well.
LIMIT = 300
GRACE = 60  # at the end of the suite, for what only has to notice that all others have ended

_MARK = "DIFFUSE_TESTS_SCOPE"  # in the environment of a process: who started it, or a parent of it
# Of libraries in the process of the tests; they end with it.
_HELPERS = ("resource_tracker", "compile_worker", "forkserver", "diffuse.tracking.worker")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER

Scope = tuple[str, list[Callable[[], None]]]
_scopes: list[Scope] = []  # the innermost last


def current_scope() -> Scope:
    """The test, or the session where no test has begun, with which processes end."""
    return _scopes[-1]


def launch(
    command: Sequence[Any], *, env: Mapping[str, str] | None = None, scope: Scope | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """`subprocess.Popen`, in a session of its own; it ends with the test, or `scope`, with all that it has started."""
    mark, ends = scope or current_scope()
    marked = {**(os.environ if env is None else env), _MARK: mark}
    process = subprocess.Popen([*map(str, command)], env=marked, **{"start_new_session": True, **options})
    ends.append(lambda: end(process))
    return process


def fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """A process that has been forked off this one, and begins at once with `function(*arguments)`."""
    mark, ends = _scopes[-1]

    def marked() -> None:
        os.environ[_MARK] = mark
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=marked)
    process.start()
    ends.append(process.kill)
    return process


def end(process: subprocess.Popen[Any]) -> None:
    """Kills the session that a process leads, and buries it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait(LIMIT)


@contextmanager
def scope() -> Iterator[None]:
    """What is launched in the block ends with it."""
    mark, ends = secrets.token_hex(8), []
    _scopes.append((mark, ends))
    try:
        yield
    finally:
        _scopes.remove((mark, ends))
        for each in reversed(ends):
            each()
        if ends:
            _kill([process for process in psutil.process_iter() if _environment(process).get(_MARK) == mark])


@pytest.fixture(scope="session", autouse=True)
def processes_of_the_session() -> Iterator[None]:
    with scope():
        yield


@pytest.fixture(autouse=True)
def processes_of_the_test(processes_of_the_session: None) -> Iterator[None]:
    with scope():
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Whoever loses its parent becomes a child of this process, and so is found in the end."""
    if _is_first(config) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the suite where a process is left, names it and ends it. The workers of pytest-xdist have ended by now."""
    if not _is_first(session.config):
        return
    left = [process for process in psutil.Process().children(recursive=True) if not _is_helper(process)]
    _, left = psutil.wait_procs(left, timeout=GRACE)
    left = [process for process in left if not _is_zombie(process)]
    names = [f"{process.pid}: {' '.join(_command(process))[:200]}" for process in left]
    _kill(left)
    if names:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[_LEFT] = names


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for name in config.stash.get(_LEFT, []):
        terminalreporter.write_line(f"a process was left behind: {name}", red=True)


_LEFT = pytest.StashKey[list[str]]()


def _is_first(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_helper(process: psutil.Process) -> bool:
    return _MARK not in _environment(process) and any(name in part for part in _command(process) for name in _HELPERS)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
