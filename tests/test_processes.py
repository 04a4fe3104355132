"""No process outlives the test that started it, nor the suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import psutil

TESTS = Path(__file__).parent
CONFTEST = """
import processes
processes.GRACE = 0.5
from processes import (
    processes_of_the_session, processes_of_the_test, pytest_configure, pytest_sessionfinish, pytest_terminal_summary,
)
"""
SERVER = """
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(10_000)"]
for session in (False, True):
    print(subprocess.Popen(sleep, start_new_session=session).pid, flush=True)
if sys.argv[1:] == ["stays"]:
    subprocess.Popen(sleep).wait()
"""
FAILING = """
import os, sys
from pathlib import Path
import pytest
from processes import fork, launch

def told(process):
    with open("pids", "a") as file:
        print(process.pid, process.stdout.readline(), process.stdout.readline(), file=file)

@pytest.fixture(scope="module")
def server():
    process = launch([sys.executable, "server.py", "stays"], stdout=-1, text=True)
    told(process)
    yield process

@pytest.mark.parametrize("more", [["stays"], []])  # or it is gone, and what it has started is nobody's child
def test_that_fails(server, more):
    told(launch([sys.executable, "server.py", *more], stdout=-1, text=True))
    print(fork(os.read, os.pipe()[0], 1).pid, file=open("pids", "a"))
    assert server.poll() is not None
"""
LEAVING = """
import subprocess, sys

def test_that_passes():
    subprocess.run([sys.executable, "server.py"], stdout=open("pids", "a"), check=True)
"""


def suite(folder: Path, test: str, *options: str) -> tuple[int, str, list[int]]:
    """Runs a suite of one file: how it ended, what it said, and the processes that it started and that are left."""
    files = {"conftest.py": CONFTEST, "server.py": SERVER, "test_one.py": test, "pytest.ini": "[pytest]\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    env = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parent)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    started = list(map(int, re.findall(r"\d+", (folder / "pids").read_text())))
    assert started, done.stdout + done.stderr
    return done.returncode, done.stdout, [pid for pid in started if psutil.pid_exists(pid) and not dead(pid)]


def dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_test_that_fails_leaves_no_process(tmp_path: Path) -> None:
    """Servers of the test and of the file, with children in their session and outside it, and a fork."""
    status, said, left = suite(tmp_path, FAILING)
    assert status == 1 and "2 failed" in said and "left behind" not in said and left == []


def test_a_suite_that_leaves_processes_fails_and_names_them(tmp_path: Path) -> None:
    status, said, left = suite(tmp_path, LEAVING, "-n", "1")
    assert status == 1 and "1 passed" in said and left == [], said
    assert said.count("a process was left behind: ") == 2 and "time.sleep(10_000)" in said


def test_processes_are_started_in_one_place() -> None:
    """`subprocess.run` waits for the end of what it starts."""
    own = ("benchmarks/", "support/processes.py", "test_processes.py")
    files = {str(path.relative_to(TESTS)): path.read_text() for path in TESTS.rglob("*.py")}
    started = re.compile(r"Popen\(|\.Process\(target")
    found = {name for name, text in files.items() if not name.startswith(own) and started.search(text)}
    assert not found
