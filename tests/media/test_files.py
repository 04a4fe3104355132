"""Names of files, and writing that harms no file and leaves no half one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import LIMIT, fork
from saved_images import noisy, pixels, refuse, save, smooth

from diffuse.errors import MediaError, RunError
from diffuse.media.files import TEMPORARY, check_output, file_stem, pillow_warnings

NASTY = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=80),
    st.lists(
        st.sampled_from(
            [
                "..",
                ".",
                "/",
                "\\",
                "\0",
                "~",
                "-",
                "-rf ",
                "con",
                "NUL",
                "com1",
                "lpt¹",
                ":",
                "*",
                "🚀",
                "a",
                " ",
                "\n",
                "$",
            ]
        ),
        max_size=8,
    ).map("".join),
    st.sampled_from(
        ["x" * 5000, "🚀" * 5000, "/etc/passwd", "../../x", "-o", "--", "con.png", "aux .x", ".diffuse-x.tmp"]
    ),
)


@settings(max_examples=150, deadline=None)
@given(prompt=NASTY, seed=st.integers(0, 2**63))
def test_a_name_from_a_prompt_is_plain_and_short(prompt: str, seed: int) -> None:
    stem = file_stem(prompt, seed)
    assert re.fullmatch(r"[A-Za-z0-9_]{1,50}_\d+", stem)
    assert stem.endswith(f"_{seed}")


def test_a_name_from_a_prompt_keeps_its_words() -> None:
    assert file_stem("a cat, on a mat", 7) == "a_cat__on_a_mat_7"
    assert file_stem("word " * 30, 7) == ("word_" * 10) + "_7"
    assert file_stem("", 7) == file_stem("🚀/..", 7) == "image_7"


@settings(max_examples=80, deadline=None)
@given(name=NASTY)
@example(name="..")
@example(name="../x")
@example(name="x/../../y")
@example(name="-rf")
@example(name="🚀" * 5000)
def test_a_given_name_stays_in_the_folder_or_is_refused(name: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "inner" / "out"
        folder.mkdir(parents=True)
        try:
            paths = [save(smooth(1, 1), folder, name) for _ in range(2)]
        except MediaError as error:
            assert len(str(error).splitlines()) == 1 and "output.name" in str(error)
            paths = []
        files = [Path(root) / file for root, _, names in os.walk(outer) for file in names]
        assert sorted(files) == sorted(paths)
        assert all(path.parent == folder for path in paths)
        assert [path.name[0] for path in paths if path.name[0] in ". "] == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "a\\b",
        "a\0b",
        ".a",
        "a.",
        " a",
        "a ",
        "con",
        "NUL.x",
        "a:b",
        "a\nb",
        "a\udce9",
        "a.png",
        "a.JPG",
    ],
)
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        save(smooth(1, 1), tmp_path, name)
    with pytest.raises(MediaError):
        file_stem("prompt", 1, name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("precious")
    (tmp_path / "picture_1.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "picture_2.png").mkdir()
    first, second = noisy(8, 8, 1), noisy(8, 8, 2)
    assert [save(image, tmp_path).name for image in (first, second)] == ["picture_3.png", "picture_4.png"]
    assert (tmp_path / "picture.png").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    np.testing.assert_array_equal(pixels(tmp_path / "picture_3.png"), first)
    np.testing.assert_array_equal(pixels(tmp_path / "picture_4.png"), second)
    assert save(first, tmp_path, format="webp").name == "picture.webp"


def no_links(*paths: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_writers_at_the_same_time_lose_nothing(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a file system without hard links."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    writers, each = 4, 8
    begin = multiprocessing.get_context("fork").Barrier(writers)

    def write(writer: int) -> None:
        begin.wait()
        for number in range(each):
            save(np.full((4, 4, 3), writer * each + number, np.uint8), tmp_path)

    processes = [fork(write, writer) for writer in range(writers)]
    for process in processes:
        process.join(LIMIT)
        assert process.exitcode == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"picture.png"} | {f"picture_{n}.png" for n in range(1, writers * each)}
    assert {int(pixels(path)[0, 0, 0]) for path in tmp_path.iterdir()} == set(range(writers * each))


def test_a_kill_in_the_middle_leaves_no_half_written_picture(tmp_path: Path) -> None:
    """The process dies at byte 4096, at once, as from kill -9."""
    image = noisy(100, 100)

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(image, tmp_path)

    process = fork(write)
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGXFSZ
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(TEMPORARY) and rest.suffix == ".tmp" and rest.stat().st_size == 4096
    np.testing.assert_array_equal(pixels(save(image, tmp_path)), image)  # nor is it in the way


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files cannot grow past 4 KiB, as on a disk that becomes full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_cannot_be_written_whole_is_not_written(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(RunError, match="could not be saved"):
        save(noisy(100, 100), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert save(smooth(2, 2), tmp_path).is_file()  # what fits is written still


def test_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    before, entered, gate = list(warnings.filters), threading.Event(), threading.Event()

    def hold() -> None:
        with pillow_warnings("error"):
            entered.set()
            gate.wait(LIMIT)

    def follow() -> None:
        entered.wait(LIMIT)
        with pillow_warnings("ignore"):
            pass

    threads = [threading.Thread(target=each) for each in (hold, follow)]
    for thread in threads:
        thread.start()
    entered.wait(LIMIT)
    gate.set()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "x" * 300, "nul\0byte"):
        refuse(lambda folder=folder: check_output(tmp_path / folder), "output.dir", "choose")
    refuse(lambda: check_output(Path("/proc/nowhere")), "output.dir")
    check_output(tmp_path / "not" / "there" / "yet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
