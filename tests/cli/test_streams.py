"""Standard outputs that cannot hold a path: one of another encoding, a full one."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from command import exit_status, log_kept, smoke
from processes import LIMIT

from diffuse.cli.main import main
from diffuse.cli.output import report_line
from diffuse.terminal import print_error, print_path, say

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


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("picture")
    return folder / smoke("output.dir=.", cwd=folder).paths[0]


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "doctor",
        "--dry-run seed=1",
        "--dry-run -m seed=1,2",
        "compare PICTURE --out report",
        "ui tracking.uri=http://127.0.0.1:1",
        "reproduce PICTURE tracking=none output.dir=again",
        "seed=1 num_inference_steps=1 tracking=none output.dir=out",
        "-m seed=1 num_inference_steps=1 tracking=none output.dir=sweep report.make=false",
    ],
)
def test_every_command_says_in_a_line_that_the_output_is_full(arguments: str, picture: Path, tmp_path: Path) -> None:
    err = io.StringIO()
    full = _Broken(OSError(errno.ENOSPC, "No space left on device"))
    status = exit_status(*arguments.replace("PICTURE", str(picture)).split(), cwd=tmp_path, out=full, err=err)
    *_, said = err.getvalue().splitlines()
    assert status == 1 and said.startswith("diffuse: standard output cannot be written: No space left on device")
    assert "Traceback" not in err.getvalue()


COMMANDS = ("seed=1", "-m seed=1,2", "--cfg job", "--dry-run", "doctor", "sync", "download", "ui", "compare a")


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_current_folder_that_is_gone(arguments: str, tmp_path: Path) -> None:
    folder, out, err = tmp_path / "gone", io.StringIO(), io.StringIO()
    before = Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    try:
        with log_kept(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main(arguments.split())
    finally:
        os.chdir(before)
    said = "diffuse: the current folder is not there any more: No such file or directory; go to another\n"
    assert (end.value.code, out.getvalue(), err.getvalue()) == (2, "", said)


class _Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("closed"), RuntimeError("a"), OSError(5, "b"), LookupError("c")], ids=str)
def test_a_stream_that_raises_anything_costs_no_picture(error: Exception, tmp_path: Path) -> None:
    with redirect_stdout(_Broken(error)):
        for number in range(5):
            print_path(tmp_path / str(number))
    failure = print_error()
    assert failure is not None and failure.strerror and print_error() is None


@pytest.mark.parametrize("error", [ValueError("closed"), OSError(5, "b"), BrokenPipeError()], ids=str)
def test_messages_that_nobody_can_read_end_nothing(error: Exception) -> None:
    with redirect_stderr(_Broken(error)):
        say("a line")
        report_line("a line")
