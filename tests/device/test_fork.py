"""Torch in a forked process: it answers with one thread, or refuses in a line, and does not hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import LIMIT

PROGRAM = """
import multiprocessing, os, threading
import diffuse, torch

def picture(*overrides):
    quick = dict(num_inference_steps=1, seed=1, hardware="cpu", tracking="none", progress=False)
    return diffuse.txt2img("a cat", **quick, overrides=overrides)

def in_child(do):
    "What `do` gives, or what it is refused with, in a forked process."
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            said = do()
        except diffuse.DiffuseError as error:
            said = str(error)
        os.write(writing, str(said).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return said

def threads(*overrides):
    return picture(*overrides).record["hardware"]["threads"]
"""

REFUSED = (
    "hardware.threads=2: this process was forked from one that had used torch's threads, and has one alone; take 1, or "
    "start it with multiprocessing's 'spawn' instead of 'fork'"
)

# By what the first process has done: lines of its program, and what each prints. It ends only if nothing in it hangs.
CASES: dict[str, dict[str, str]] = {
    "it computed with two threads": {
        "first = picture('hardware.threads=2'); print(len(first.images))": "1",
        "print(in_child(lambda: (picture().frames == first.frames).all()), in_child(threads))": "True 1",
        "print(in_child(lambda: threads('hardware.threads=2')))": REFUSED,
        "print(in_child(lambda: threads('hardware.threads=1')))": "1",
        "print(in_child(lambda: in_child(threads)))": "1",
        "print(in_child(lambda: in_child(lambda: threads('hardware.threads=2'))))": REFUSED,
        "with multiprocessing.get_context('fork').Pool(1) as pool: print(pool.apply(threads))": "1",
        "thread = threading.Thread(target=lambda: print(in_child(threads))); thread.start(); thread.join()": "1",
        "print(threads('hardware.threads=2'))": "2",  # the first process has them still
    },
    "it computed nothing, and then with one thread": {
        "print(in_child(lambda: threads('hardware.threads=2')))": "2",
        "print(threads('hardware.threads=1'))": "1",
        "print(in_child(lambda: threads('hardware.threads=2')))  # again": "2",
    },
    "something else in it computed with torch": {
        "torch.set_num_threads(2); x = torch.ones(2000, 2000); print(int((x @ x + x).max()))": "2001",
        "print(in_child(threads))": "1",
    },
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is never safe with threads")
@pytest.mark.parametrize("case", CASES)
def test_a_forked_process_answers_or_refuses(case: str, tmp_path: Path) -> None:
    program = PROGRAM + "\n".join(CASES[case])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(CASES[case].values())
    limited = case != "it computed nothing, and then with one thread"
    assert ("computing with one thread: this process was forked" in done.stderr) is limited
    assert "Traceback" not in done.stderr
