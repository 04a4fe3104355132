"""The command line as a contract: what goes to which stream, with which status, and what is left behind."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command import SMOKE, Done, diffuse, exit_status, finished, log_kept, smoke, start
from damaged import damaged
from hub_server import MAIN, HubServer, Repository
from PIL import Image
from processes import LIMIT

import diffuse as package
from diffuse.cli import main as cli
from diffuse.config.groups import known_keys
from diffuse.media.load import read_record

TINY = Path(package.__file__).parent / "tiny" / "checkpoint"
UNTRACKED = (*SMOKE, "tracking=none", "output.dir=out")


def lines(text: str) -> list[str]:
    return text.splitlines()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_standard_output_carries_the_saved_paths_in_order_and_nothing_else(tmp_path: Path) -> None:
    done = smoke("prompt=a cat", "seed=9", "num_images=3", "output.dir=out", cwd=tmp_path)
    assert done.out == "out/a_cat_9.png\nout/a_cat_10.png\nout/a_cat_11.png\n"
    assert files(tmp_path) == sorted(lines(done.out))
    assert re.fullmatch(r"3 pictures in [\d.]+ s: seeds 9 to 11, 64 x 64, 1 step, cpu_only on .*", lines(done.err)[-1])


def test_generate_is_the_same_as_nothing(tmp_path: Path) -> None:
    done = diffuse("generate", *UNTRACKED, "output.name=x", cwd=tmp_path)
    assert (done.status, done.out) == (0, "out/x.png\n")


def test_the_default_folder_is_the_runs_own(tmp_path: Path) -> None:
    done = smoke("prompt=a cat", "seed=1", cwd=tmp_path)
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d/a_cat_1\.png\n", done.out)


def test_an_absolute_folder_is_printed_as_it_was_given(tmp_path: Path) -> None:
    done = smoke(f"output.dir={tmp_path}/a folder, (with) [signs]", "output.name=x", cwd=Path("/"))
    assert done.out == f"{tmp_path}/a folder, (with) [signs]/x.png\n"
    assert Path(done.out.rstrip("\n")).is_file()


def test_the_second_picture_of_a_name_gets_a_number(tmp_path: Path) -> None:
    first, second = (smoke("output.dir=out", "output.name=x", cwd=tmp_path).out for _ in range(2))
    assert (first, second) == ("out/x.png\n", "out/x_1.png\n")
    assert np.array_equal(Image.open(tmp_path / "out/x.png"), Image.open(tmp_path / "out/x_1.png"))


def test_help(tmp_path: Path) -> None:
    done = diffuse("--help", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert all(len(line) <= 120 for line in lines(done.out))
    for command in cli.COMMANDS[1:]:
        assert f"diffuse {command}" in done.out
    for arguments in (["-h"], ["seed=1", "--help"]):
        assert diffuse(*arguments, cwd=tmp_path) == done
    fields = ("prompt", "negative_prompt", "prompt_file", "seed", "num_images", "width", "height")
    fields += ("num_inference_steps", "guidance_scale", "output.dir", "output.format", "output.quality")
    for field in (*fields, "lora", "embedding", "memory_profile"):
        assert field in done.out and field in known_keys()
    for status in ("0 done", "2 the request is wrong", "1 the run failed"):
        assert status in " ".join(done.out.split())


def test_version(tmp_path: Path) -> None:
    assert diffuse("--version", cwd=tmp_path) == Done(0, f"diffuse {package.__version__}\n", "")


def test_the_configuration_is_printed_and_nothing_made(tmp_path: Path) -> None:
    done = diffuse("--cfg", "job", "seed=5", "prompt=a, b", "model=sd21", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    printed = yaml.safe_load(done.out)
    assert (printed["seed"], printed["prompt"], printed["model"]["name"]) == (5, "a, b", "sd21")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sed=1"],
        ["-x"],
        ["--cfg"],
        ["--cfg", "nothing"],
        ["download", "--ye"],
        ["doctor", "-m"],
        ["ui", "--port"],
        ["doctor", "sed=1"],
        ["seed=1", "doctor"],
        [""],
    ],
)
def test_arguments_that_do_not_exist(arguments: list[str], tmp_path: Path) -> None:
    done = diffuse(*arguments, cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert len(lines(done.err)) == 1 and done.err.startswith("diffuse: "), done.err
    assert list(tmp_path.iterdir()) == []


def test_a_reference_to_what_is_not_there(tmp_path: Path) -> None:
    done = diffuse(*SMOKE, "input_image=${x}.png", cwd=tmp_path)
    assert (done.status, done.out) == (2, "") and list(tmp_path.iterdir()) == []
    assert len(lines(done.err)) == 1 and "input_image: ${x} is no field" in done.err, done.err


def test_a_sweep_makes_a_folder_for_each_job(tmp_path: Path) -> None:
    done = smoke(
        "-m", "report.make=false", "output.dir=out", "output.name=x", "seed=1,2", "guidance_scale=2,3", cwd=tmp_path
    )
    folders = [Path(path).parent.name.rpartition("-")[0] for path in lines(done.out)]
    assert folders == [f"guidance_scale_{scale}-seed_{seed}" for seed in (1, 2) for scale in (2, 3)]
    made = [read_record(tmp_path / path)["request"] for path in lines(done.out)]
    assert [(r["seed"], r["guidance_scale"]) for r in made] == [(1, 2.0), (1, 3.0), (2, 2.0), (2, 3.0)]
    assert {path for path in files(tmp_path) if path.endswith(".png")} == set(lines(done.out))


def test_a_wrong_job_does_not_stop_the_sweep(tmp_path: Path) -> None:
    done = diffuse("-m", *UNTRACKED, "report.make=false", "output.name=x", "width=64,65,72", cwd=tmp_path)
    assert done.status == 2
    assert [Image.open(tmp_path / path).size for path in lines(done.out)] == [(64, 64), (72, 64)]
    said = [line for line in lines(done.err) if line.startswith("diffuse: ")]
    assert "width=65" in said[0] and "1 job of the sweep failed" in said[1]
    assert len(said) == 2 and "Traceback" not in done.err
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 2


def test_a_failing_job_does_not_stop_the_sweep(tmp_path: Path) -> None:
    sources = f"model.source={damaged(tmp_path / 'damaged')},{TINY}"
    done = diffuse("-m", "report.make=false", *UNTRACKED, "output.name=x", sources, cwd=tmp_path)
    assert done.status == 1
    assert [Path(path).name for path in lines(done.out)] == ["x.png"]
    said = [line for line in lines(done.err) if line.startswith("diffuse: ")]
    assert "NaN" in said[0] and "1 job of the sweep failed" in said[1]
    assert "Traceback" not in done.err


def test_a_cut_prompt_is_shown_on_standard_error(tmp_path: Path) -> None:
    prompt = "a red apple " * 40 + "and the very end"
    done = smoke(f"prompt={prompt}", "negative_prompt=short", "output.dir=out", cwd=tmp_path)
    (warning,) = [line for line in lines(done.err) if line.startswith("warning: ")]
    cut = re.search(r"the prompt is longer than \d+ tokens; cut off: '(.*)'", warning)
    assert cut and prompt.endswith(cut[1]) and 0 < len(cut[1]) < len(prompt)
    assert len(lines(done.out)) == 1
    done = smoke("prompt=short", f"negative_prompt={prompt}", "output.dir=out", cwd=tmp_path)
    assert "warning: the negative prompt is longer" in done.err
    assert "warning" not in smoke("prompt=short", "output.dir=out", cwd=tmp_path).err


def test_nothing_is_drawn_where_standard_error_is_no_terminal(tmp_path: Path) -> None:
    done = smoke("num_inference_steps=3", "output.dir=out", cwd=tmp_path)
    assert "\x1b" not in done.err and "\r" not in done.err
    assert len(lines(done.err)) == 1


def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with log_kept():
        cli._log_to_stderr()
        inner = logging.getLogger("diffuse.some.room")
        inner.debug("unseen")
        inner.info("told %s", "once")
        inner.warning("two\nlines, %d %%", 1)
    assert capsys.readouterr() == ("", "told once\nwarning: two lines, 1 %\n")


def test_doctor(tmp_path: Path) -> None:
    done = diffuse("doctor", "tracking.uri=http://me:hunter2@127.0.0.1:1", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    for said in ("torch", "mlflow", "would use", "tiny", "sd21", "hub cache", "tracking", package.__version__):
        assert said in done.out
    assert "hunter2" not in done.out
    assert list(tmp_path.iterdir()) == []
    planned = diffuse("doctor", "hardware=cpu", "hardware.vram_gb=6", "tracking=none", cwd=tmp_path)
    assert planned.status == 0 and "planned for" in planned.out


def test_download_of_what_is_here(tmp_path: Path) -> None:
    done = diffuse("download", cwd=tmp_path)
    assert (done.status, done.out) == (0, f"{TINY}\n")
    assert "nothing to fetch" in done.err


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback that has the tiny checkpoint, and an empty cache."""
    held = {path.relative_to(TINY).as_posix(): path.read_bytes() for path in TINY.rglob("*") if path.is_file()}
    with HubServer({"owner/tiny": Repository({**held, "README.md": b"not needed"})}) as running:
        running.is_the_hub(monkeypatch, tmp_path / "cache")
        yield running


def test_download_and_then_a_picture_without_the_network(hub: HubServer, tmp_path: Path) -> None:
    source = "model.source=owner/tiny"
    asked = diffuse("download", source, cwd=tmp_path)
    assert (asked.status, asked.out) == (2, "") and "--yes" in asked.err
    done = diffuse("download", source, "--yes", cwd=tmp_path)
    assert done.status == 0, done.err
    (folder,) = done.paths
    assert (folder.name, folder.is_relative_to(tmp_path / "cache")) == (MAIN, True)
    assert "README.md" not in hub.fetched() and "complete, every file checked" in done.err

    requests = len(hub.log)
    made = smoke(source, "seed=1", "output.dir=hub", cwd=tmp_path)
    local = smoke("seed=1", "output.dir=local", cwd=tmp_path)
    assert len(hub.log) == requests
    assert np.array_equal(*(Image.open(tmp_path / run.paths[0]) for run in (made, local)))
    weights = [read_record(tmp_path / run.paths[0])["weights"] for run in (made, local)]
    assert (weights[0]["source"], weights[0]["revision"]) == ("owner/tiny", MAIN)
    assert weights[0]["sha256"] == weights[1]["sha256"]


def test_a_preset_with_another_source_needs_not_its_commit(hub: HubServer, tmp_path: Path) -> None:
    done = diffuse("download", "model=sd21", "model.source=owner/tiny", "--yes", cwd=tmp_path)
    assert done.status == 0, done.err
    wrong = diffuse("download", "model.source=owner/tiny", "model.revision=" + "b" * 40, "--yes", cwd=tmp_path)
    assert wrong.status == 2 and "b" * 40 in wrong.err


CODE = """\
import os, sys
from diffuse.cli import main as cli
for line in sys.stdin:
    try:
        cli.main(eval(line))
    except SystemExit as end:
        heavy = [name for name in ("torch", "mlflow", "transformers", "diffusers") if name in sys.modules]
        print("ended", end.code, heavy, file=sys.stderr)
"""
LIGHT: dict[str, tuple[list[str], int]] = {
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "unknown option": (["--sed"], 2),
    "misspelled field": (["sed=3"], 2),
    "misspelled option of a group": (["model=tini"], 2),
    "wrong type": (["seed=abc"], 2),
    "wrong value": (["width=65"], 2),
    "wrong value in a sweep": (["-m", "width=65,66"], 2),
    "wrong format": (["output.format=bmp"], 2),
    "an option of the sampler": (["scheduler.eta=7"], 2),
    "a weight that is no number": (["prompt=(cat:1,3)", "prompt_syntax=weighted"], 2),
    "a file of prompts that is not there": (["prompt_file=nowhere.txt"], 2),
    "no file to reproduce": (["reproduce", "nowhere.png"], 2),
    "nothing that a smoke run takes": (["experiment=smoke", "seed=3"], 2),
    "configuration": (["--cfg", "job"], 0),
    "a wrong source": (["download", "model.source="], 2),
    "nothing to show": (["ui", "tracking=none"], 2),
}


def test_help_and_refusals_import_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    """One process for them all, none of which may import either."""
    given = "".join(f"{arguments!r}\n" for arguments, _ in LIGHT.values())
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=given, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ended = [line for line in lines(done.stderr) if line.startswith("ended ")]
    assert dict(zip(LIGHT, ended, strict=True)) == {name: f"ended {status} []" for name, (_, status) in LIGHT.items()}
    assert list(tmp_path.iterdir()) == []


def closed(number: int) -> Callable[[], None]:
    return lambda: os.close(number)


@pytest.fixture
def reader_gone() -> int:
    """A pipe into which nobody looks any more."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_a_reader_that_has_gone_costs_no_picture(reader_gone: int, tmp_path: Path) -> None:
    messages = io.StringIO()
    with open(reader_gone, "w") as stream:
        status = exit_status(*UNTRACKED, "num_images=2", "seed=1", cwd=tmp_path, out=stream, err=messages)
    assert status == 1
    assert len(files(tmp_path)) == 2 and all(Image.open(tmp_path / path).size == (64, 64) for path in files(tmp_path))
    summary, said = lines(messages.getvalue())
    assert summary.startswith("2 pictures in")
    assert said == "diffuse: standard output cannot be written: Broken pipe; the pictures are in out"


def test_standard_streams_that_are_closed(tmp_path: Path) -> None:
    """Messages do not go astray into the other stream, nor either of them into a file."""
    configured = ("--cfg", "job", "tracking=none")
    without_out = finished(start(*configured, cwd=tmp_path, stdout=None, preexec_fn=closed(1)))
    assert (without_out.status, without_out.err) == (0, "")
    without_err = finished(start("sed=3", cwd=tmp_path, stderr=None, preexec_fn=closed(2)))
    assert (without_err.status, without_err.out) == (2, "")
    code = (
        "import os; from diffuse.cli import main as cli; cli._prepare_streams(); print(os.open('file', os.O_CREAT) > 2)"
    )
    command = [sys.executable, "-c", code]
    for number in (0, 2):
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, preexec_fn=closed(number), check=True)
        assert done.stdout == b"True\n"


def test_standard_output_that_cannot_be_written(tmp_path: Path) -> None:
    for arguments in (["--help"], ["--version"]):
        with open("/dev/full", "w") as full:
            done = finished(start(*arguments, cwd=tmp_path, stdout=full))
        assert (done.status, done.err) == (1, "diffuse: standard output cannot be written: No space left on device\n")


class Terminal:
    """A process whose standard error is a terminal, and what has been drawn there."""

    def __init__(self, *arguments: Any, cwd: Path) -> None:
        self.ours, theirs = pty.openpty()
        env = {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        self.process = start(*arguments, cwd=cwd, stderr=theirs, env=env)
        os.close(theirs)
        self.drawn = ""

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not re.search(pattern, self.drawn):
            assert time.monotonic() < deadline, self.drawn
            if not self.read():
                raise AssertionError(f"ended before {pattern!r} was drawn: {self.drawn}")

    def read(self) -> bool:
        """Whether there may be more."""
        if select.select([self.ours], [], [], 0.5)[0]:
            with suppress(OSError):  # how Linux tells that the other end is closed
                got = os.read(self.ours, 65536)
                self.drawn += got.decode(errors="replace")
                return bool(got)
            return False
        return True

    def end(self) -> Done:
        while self.read():
            pass
        out, _ = self.process.communicate(timeout=LIMIT)
        os.close(self.ours)
        return Done(self.process.returncode, out, self.drawn)


def test_ctrl_c_under_a_terminal(empty: Path, tmp_path: Path) -> None:
    """The bar is drawn while the steps go on; interrupted there, the run leaves its record and no picture."""
    store = Path(shutil.copy(empty, tmp_path / "mlflow.db"))
    terminal = Terminal(
        *SMOKE, "prompt=a [red] cat", "num_inference_steps=1000", f"tracking.uri=sqlite:///{store}", "output.dir=out",
        cwd=tmp_path,
    )  # fmt: skip
    terminal.wait_for(r"[1-9]\d*/1000")
    terminal.process.send_signal(signal.SIGINT)
    done = terminal.end()
    assert (done.status, done.out) == (130, "")
    assert "a [red] cat" in done.err and "left" in done.err
    assert "Traceback" not in done.err
    assert lines(done.err.replace("\r", ""))[-1].endswith("diffuse: interrupted")
    assert done.err.rfind("\x1b[?25h") > done.err.rfind("\x1b[?25l")  # the cursor is shown again
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("select status from runs").fetchall() == [("KILLED",)]
        tags = dict(connection.execute("select key, value from tags").fetchall())
    assert tags["diffuse.error"].startswith("KeyboardInterrupt")
    assert not (tmp_path / "out").exists()
    assert not [path for path in files(tmp_path) if path.endswith(".tmp")]


def test_the_bar_of_a_run_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of all pictures are counted, and the bar is gone in the end."""
    ours, theirs = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        with suppress(OSError):
            while got := os.read(ours, 65536):
                drawn.append(got)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    arguments = (*UNTRACKED, "num_inference_steps=4", "num_images=2", "memory_profile.batch_size=1")
    with os.fdopen(theirs, "w", buffering=1) as stream:
        status = exit_status(*arguments, cwd=tmp_path, out=io.StringIO(), err=stream)
    reader.join(LIMIT)
    os.close(ours)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", b"".join(drawn).decode())
    assert status == 0
    assert re.search(r"\b8/8\b", text)
    assert "2 pictures in" in text.rstrip().splitlines()[-1]
