"""Standard outputs that cannot hold a path: one of another encoding, a full one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LIMIT

RUN = ["prompt=x", "num_inference_steps=1", "tracking=none"]
ENCODINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
}


def _diffuse(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "diffuse", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **variables}, timeout=LIMIT)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_path_is_printed_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "图片"
    done = _diffuse([*RUN, "seed=1", f"output.dir={folder}"], **ENCODINGS[encoding])
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    (file,) = folder.glob("*.png")
    escaped = str(file).encode("ascii", "backslashreplace")
    assert done.stdout.strip() in (escaped, os.fsencode(file))  # the C locale takes and gives the bytes of names


def test_a_sweep_saves_every_picture_in_a_folder_that_cannot_be_printed(tmp_path: Path) -> None:
    folder = tmp_path / "图片"
    done = _diffuse(["-m", *RUN, "seed=1,2,3,4,5,6", f"output.dir={folder}"], PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert len({*done.stdout.splitlines()} & {line for line in done.stdout.splitlines() if b".png" in line}) == 6


def test_letters_that_the_encoding_has_are_printed_as_they_are(tmp_path: Path) -> None:
    done = _diffuse([*RUN, "seed=1", f"output.dir={tmp_path / 'é中'}"], PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and b"\xe9\\u4e2d/" in done.stdout, done.stderr


@pytest.mark.parametrize("flags", ["--cfg job", "--cfg all", "--cfg job --package output", "-c job", "--cfg hydra"])
def test_a_full_output_is_one_line(flags: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "diffuse", "prompt=x", *flags.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
        )
    assert done.returncode == 1
    assert done.stderr == "diffuse: standard output cannot be written: No space left on device\n"
