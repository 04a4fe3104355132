"""Sweeps that are stopped, at whatever moment and by whatever means, and started again."""

from __future__ import annotations

import os
import pty
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import film_peers
import pytest
from command import SMOKE, diffuse, finished, jobs_in, start, until
from fork_server import ForkServer, fork_server
from processes import LIMIT
from workers import LONG, QUICK, gone, on_a_terminal, processes_in, stopping, tracked
from workers import runs as runs_in

from diffuse.media.load import content_sha256, image_sha256, read_record
from diffuse.sweep.interrupt import (
    STOP_SIGNALS,
    Interruption,
    ctrl_c_blocked,
    ignore_stop_signals,
    leave_lost_terminal,
    stop_signals_as_ctrl_c,
    stop_signals_kept,
)
from diffuse.sweep.progress import SweepProgress
from diffuse.terminal import Progress

KILLS = 4
COMMAND = (
    "-m",
    "hardware=cpu",
    "hardware.threads=1",
    "memory_profile.batch_size=4",  # so that there are more batches to come in between
    "output.dir=out",
    "report.make=false",
)
AXES = ("seed=range(0,6)", "num_inference_steps=1,2")
JOBS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with fork_server(tmp_path_factory.mktemp("log")) as server:
        yield server


def assert_complete(folder: Path, jobs: int = JOBS) -> None:
    """Every job is there once, with the pixels that it says; and nothing else is."""
    said = jobs_in(folder / "out")
    assert len({each["key"] for each in said}) == len(said) == jobs
    for path, each in zip(sorted(folder.glob("out/*/job.json")), said, strict=True):
        assert each["status"] == "done" and each["error"] is None
        (entry,) = each["media"]
        assert {file.name for file in path.parent.iterdir()} == {"job.json", entry["file"]}
        picture = path.parent / entry["file"]
        assert image_sha256(picture) == entry["pixels_sha256"]
        if picture.suffix == ".png":  # others are not what was encoded
            assert read_record(picture)["image"]["pixels_sha256"] == entry["pixels_sha256"]


def runs(folder: Path) -> Counter[tuple[str, str]]:
    """How many runs of the store there are of each job, with which status."""
    with sqlite3.connect(folder / "outputs" / "mlflow.db") as store:
        query = (
            "select tags.value, runs.status from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'diffuse.job'"
        )
        return Counter(store.execute(query))


def fresh(folder: Path, empty: Path) -> Path:
    """A folder with a store in it."""
    (folder / "outputs").mkdir(parents=True)
    shutil.copy(empty, folder / "outputs" / "mlflow.db")
    return folder


def test_killed_at_four_moments(server: ForkServer, empty: Path, tmp_path: Path) -> None:
    """Starts of one sweep, each killed at its n-th touch of a file, until one comes to the end; then of another."""
    draw = random.Random(4)
    killed, sweeps = 0, 0
    while killed < KILLS:
        folder = fresh(tmp_path / str(sweeps), empty)
        while (ended := server.run(*COMMAND, *AXES, cwd=folder, kill_at=draw.randrange(3, 60))).status:
            assert ended.status == -signal.SIGKILL, ended.err
            killed += 1
            if killed == KILLS:
                ended = server.run(*COMMAND, *AXES, cwd=folder)
                break
        sweeps += 1
        assert ended.status == 0 and len(ended.out.splitlines()) == JOBS, ended.err
        assert_complete(folder)
        assert runs(folder) == {(each["key"], "FINISHED"): 1 for each in jobs_in(folder / "out")}


def test_films_killed_at_five_moments(
    server: ForkServer, empty: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Twelve clips, in one file or a folder of frames each: one sweep, killed at its n-th touch of a file.

    How many clips are there by then depends on its threads; so the last time it is killed once one is there.
    """
    model = film_peers.tiny("2.0", tmp_path_factory).folder
    small = ("width=64", "height=64", "num_frames=9", "guidance_scale=1", "modality_scale=1", "stg_scale=0")
    command = ("-m", *COMMAND[1:], "model=ltx2", f"model.source={model}", *small, "stg_blocks=[1]", "prompt=ring")
    axes = ("output.format=mp4,frames", "seed=range(0,6)", "num_inference_steps=1")
    folder, draw = fresh(tmp_path / "films", empty), random.Random(1)
    for last in (False, False, False, False, True):
        moment: dict[str, Any] = {"kill_after": "job.json"} if last else {"kill_at": draw.randrange(30, 75)}
        ended = server.run(*command, *axes, cwd=folder, **moment)
        assert ended.status == -signal.SIGKILL, ended.err
    before = len(jobs_in(folder / "out"))
    ended = server.run(*command, *axes, cwd=folder)
    assert ended.status == 0 and len(ended.out.splitlines()) == JOBS and 0 < before < JOBS, ended.err
    jobs = jobs_in(folder / "out")
    assert {each["status"] for each in jobs} == {"done"} and len({each["key"] for each in jobs}) == len(jobs) == JOBS
    for path, job in zip(sorted(folder.glob("out/*/job.json")), jobs, strict=True):
        (entry,) = job["media"]
        clip = path.parent / entry["file"]
        assert {each.name for each in path.parent.iterdir()} == {"job.json", clip.name}
        assert content_sha256(clip) == entry["sha256"] and clip.is_dir() == (not clip.suffix)
        assert not clip.is_dir() or len(list(clip.glob("*.png"))) == 9
    assert runs(folder) == {(each["key"], "FINISHED"): 1 for each in jobs}


def test_a_file_that_cannot_be_written(server: ForkServer, tmp_path: Path) -> None:
    """The pictures fit, and job.json does not: what is not said to be done is done again."""
    command = (*COMMAND, *AXES, "tracking=none", "output.format=jpg", "output.quality=1")
    assert server.run(*command, "seed=9", cwd=tmp_path).status == 0
    most = max(path.stat().st_size for path in tmp_path.glob("out/*/*.jpg"))
    assert most < min(path.stat().st_size for path in tmp_path.glob("out/*/job.json"))
    shutil.rmtree(tmp_path / "out")
    ended = server.run(*command, "seed=1", cwd=tmp_path, file_bytes=most + 200)
    assert (ended.status, ended.out) == (1, "") and "job.json could not be written: File too large" in ended.err
    assert len(server.run(*command, "seed=1", cwd=tmp_path).out.splitlines()) == 2
    assert_complete(tmp_path, 2)


def test_on_a_full_disk(tmp_path: Path) -> None:
    """On a small file system the sweep stops; with more room the same command goes on, by Hydra's own launcher, too."""
    stops, goes_on = (
        shlex.join([sys.executable, "-m", "diffuse", *COMMAND, *AXES, "tracking=none", f"hydra/launcher={launcher}"])
        for launcher in ("diffuse", "basic")
    )
    script = (
        f"mkdir out all; mount -t tmpfs -o size=128k tmpfs out || exit 77; {stops} > first; echo $? > status; "
        f"cp -r out before; mount -o remount,size=8m out; {goes_on} > second && cp -r out/. all"
    )
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in tmp_path.glob("before/*/*.png")}
    assert (tmp_path / "status").read_text() == "1\n" and 0 < len(before) < JOBS
    said = [line for line in done.stderr.splitlines() if " left to do" in line]
    assert len(said) == 1 and "No space left on device" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "out").rmdir()
    (tmp_path / "all").rename(tmp_path / "out")
    assert len((tmp_path / "second").read_text().splitlines()) == JOBS
    assert_complete(tmp_path)


def test_ctrl_c_stops_after_the_step(tmp_path: Path) -> None:
    command = (*COMMAND, "seed=range(0,8)", "num_inference_steps=80", "tracking=none")
    process = start(*command, cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"), process)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.status == 130 and "Traceback" not in done.err, done.err
    said = done.err.splitlines()
    assert said[1] == "stopping after this step; Ctrl-C again stops at once"
    assert "8 jobs: 4 made, 0 were there, 0 failed, 4 left to do, in " in said[2]
    assert said[2].endswith("; the same command goes on from here") and said[3:] == ["diffuse: interrupted"]
    made = {each["key"] for each in jobs_in(tmp_path / "out")}
    assert len(made) == 4 == len(done.paths)
    assert all(
        {"job.json"} < {file.name for file in path.iterdir()} for path in tmp_path.glob("out/*") if path.is_dir()
    )


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """While the first still waits for the store, which takes seconds to make."""
    process = start(*COMMAND, "seed=1", "num_inference_steps=1000", cwd=tmp_path)
    until((tmp_path / "out" / "multirun.yaml").is_file, process)  # from here on Ctrl-C is handled
    process.send_signal(signal.SIGINT)
    stopping(process)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.status == 130 and "goes on" not in done.err and "Traceback" not in done.err
    assert jobs_in(tmp_path / "out") == []


@pytest.fixture
def uncaught() -> Iterator[list[int]]:
    """The signals that nothing in the package has handled."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda got, frame: received.append(got)) for number in STOP_SIGNALS}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


def send_at(monkeypatch: pytest.MonkeyPatch, progress: type, *numbers: int) -> None:
    """Has this process get signals at the end of each step, as `kill` sends them."""
    on_step = progress.on_step  # type: ignore[attr-defined]

    def step(self: Any, step: Any) -> None:
        on_step(self, step)
        for number in numbers:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(progress, "on_step", step)


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes a module that sends this process signals while it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "interrupted_import", raising=False)

    def write(*numbers: int, then: str = "time.sleep(0.1)") -> None:
        send = "".join(f"os.kill(os.getpid(), {int(number)})\n" for number in numbers)
        (tmp_path / "interrupted_import.py").write_text(f"import os\nimport time\n{send}{then}\nwhole = True\n")

    return write


@pytest.mark.parametrize("number", [signal.SIGINT, *STOP_SIGNALS], ids=str)
def test_an_import_ends_before_it_is_interrupted(
    number: int, uncaught: list[int], importing: Callable[..., None]
) -> None:
    """As torch's, which answers an exception within with endless recursion, or ends the process."""
    importing(number)
    with pytest.raises(KeyboardInterrupt), stop_signals_as_ctrl_c():
        import interrupted_import  # type: ignore[import-not-found]

        time.sleep(LIMIT)
    assert interrupted_import.whole and uncaught == []


def test_a_block_that_ends_with_its_import_is_interrupted(importing: Callable[..., None]) -> None:
    importing(signal.SIGINT, then="")
    with pytest.raises(KeyboardInterrupt), stop_signals_as_ctrl_c():
        import interrupted_import  # noqa: F401


def test_an_import_around_the_block_changes_nothing(importing: Callable[..., None]) -> None:
    block = "    with stop_signals_as_ctrl_c():\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(100)"
    before = "import signal\nfrom diffuse.sweep.interrupt import stop_signals_as_ctrl_c"
    importing(then=f"{before}\ntry:\n{block}\nexcept KeyboardInterrupt:\n    pass")
    import interrupted_import

    assert interrupted_import.whole


def test_a_second_interrupt_ends_an_import_that_does_not(importing: Callable[..., None], tmp_path: Path) -> None:
    importing(signal.SIGINT, signal.SIGINT, then="time.sleep(1000)")
    code = (
        "from diffuse.sweep import interrupt\nwith interrupt.stop_signals_as_ctrl_c():\n    import interrupted_import"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (130, "\ndiffuse: interrupted\n")


@pytest.mark.parametrize("numbers", [[number] for number in STOP_SIGNALS] + [[*STOP_SIGNALS, *STOP_SIGNALS]], ids=str)
def test_a_run_ends_as_by_ctrl_c(
    numbers: list[int], uncaught: list[int], empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_at(monkeypatch, Progress, *numbers)
    done = diffuse(*SMOKE, "num_inference_steps=9", cwd=fresh(tmp_path, empty))
    assert (done.status, done.out) == (130, "") and done.err.splitlines()[-1] == "diffuse: interrupted", done.err
    assert uncaught == [] and not list(tmp_path.rglob("*.png"))
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as store:
        assert list(store.execute("select status from runs")) == [("KILLED",)]


@pytest.mark.parametrize("numbers", [[number] for number in STOP_SIGNALS] + [[*STOP_SIGNALS, *STOP_SIGNALS]], ids=str)
def test_a_sweep_ends_as_by_ctrl_c(
    numbers: list[int], uncaught: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_at(monkeypatch, SweepProgress, *numbers)
    done = diffuse(*COMMAND, "seed=1,2", "num_inference_steps=9", "tracking=none", cwd=tmp_path)
    assert done.status == 130 and done.err.splitlines()[-1] == "diffuse: interrupted", done.err
    assert ", 2 left to do, in " in done.err
    assert uncaught == [] and jobs_in(tmp_path / "out") == []


def test_an_ignored_signal_stays_ignored(uncaught: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nohup` has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for progress, sweep in ((Progress, ()), (SweepProgress, ("-m",))):
        send_at(monkeypatch, progress, signal.SIGHUP)
        done = diffuse(*sweep, *SMOKE, "num_inference_steps=2", "tracking=none", "report.make=false", cwd=tmp_path)
        assert done.status == 0 and len(done.paths) == 1, done.err
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_handlers_are_as_before_afterwards(uncaught: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, *STOP_SIGNALS)]
    with pytest.raises(KeyboardInterrupt), stop_signals_as_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    with Interruption().handle_ctrl_c(""), stop_signals_as_ctrl_c():
        pass
    with stop_signals_kept():  # such as ray.init
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert [signal.getsignal(number) for number in (signal.SIGINT, *STOP_SIGNALS)] == before


def test_workers_leave_the_signals_to_their_command(uncaught: list[int]) -> None:
    interrupt, own = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        ignore_stop_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == own  # of the workers' library
    finally:
        signal.signal(signal.SIGINT, interrupt)
    with ctrl_c_blocked():
        assert {signal.SIGINT, signal.SIGHUP} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_closed_terminal_takes_no_more_lines() -> None:
    ours, theirs = pty.openpty()
    before = os.dup(2)
    try:
        os.dup2(theirs, 2)
        leave_lost_terminal()
        assert os.isatty(2)
        os.close(ours)
        leave_lost_terminal()
        assert os.write(2, b"a line") == 6 and os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(theirs)


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it, also where the suite runs under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
def test_a_closed_terminal_stops_workers_after_their_step(tmp_path: Path, empty: Path) -> None:
    """The system and the shell both send SIGHUP to all processes of the command."""
    store = tracked(tmp_path, empty)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.launcher.jobs_per_task=12", "tracking=mlflow")
    process = on_a_terminal("-m", *QUICK, *LONG, *joblib, cwd=tmp_path)
    until(lambda: jobs_in(tmp_path / "out"), process=process)
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    done = finished(process)
    assert gone(processes_in(tmp_path))
    pictures = len(jobs_in(tmp_path / "out"))
    assert done.status == 130 and f"{pictures} made, 0 were there, 0 failed, {12 - pictures} left" in done.err, done.err
    assert " died (" not in done.err and {status for _, status in runs_in(store)} <= {"FINISHED", "KILLED"}
