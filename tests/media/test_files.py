"""Pictures in files, read back with Pillow: right pixels, the record inside, and no file harmed on the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import smoke
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuse.errors import DiffuseError, MediaError, RunError
from diffuse.media import files as media
from diffuse.media.pixels import pixels_sha256

FORMATS = ("png", "jpg", "webp")
SIZES = [(48, 64), (64, 64), (1, 1), (3, 65), (130, 7)]  # rows, columns
RECORD = {"diffuse": "0", "text": 'comma, "quote" {x} \n 🚀 e\u0301', "image": {"seed": 7, "pixels_sha256": "ab"}}
FORK = multiprocessing.get_context("fork")


def smooth(height: int, width: int, shade: int = 0) -> np.ndarray:
    """A picture without edges, which lossy formats keep well."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin((x + shade) / 20), 128 + 100 * np.cos(y / 25), 128 + 50 * np.sin((x + y) / 30)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


def save(image: np.ndarray, folder: Path, stem: str = "picture", **options: Any) -> Path:
    return media.save_image(image, folder, stem, **{"record": RECORD, **options})


def exif(path: Path) -> tuple[str, str]:
    """The image description and the user comment, as other programs find them."""
    with Image.open(path) as picture:
        found = picture.getexif()
        comment = found.get_ifd(0x8769).get(0x9286, b"UNICODE\0")
    assert comment.startswith(b"UNICODE\0")
    return found[0x010E], comment[8:].decode("utf-16-be")


@pytest.mark.parametrize("size", SIZES)
def test_png_holds_the_very_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    image = noisy(*size)
    path = save(image, tmp_path)
    assert path == tmp_path / "picture.png"
    assert Image.open(path).format == "PNG"
    np.testing.assert_array_equal(pixels(path), image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("format", "name"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_lossy_formats_come_close(format: str, name: str, size: tuple[int, int], tmp_path: Path) -> None:
    image = smooth(*size)
    path = save(image, tmp_path, format=format, quality=95)
    assert (path.suffix, Image.open(path).format) == (f".{format}", name)
    assert pixels(path).shape == image.shape
    difference = np.abs(pixels(path).astype(int) - image.astype(int))
    assert difference.mean() < 2 and difference.max() <= 12


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_quality_trades_bytes_for_likeness(format: str, tmp_path: Path) -> None:
    image = (smooth(96, 96) // 2 + noisy(96, 96) // 4).astype(np.uint8)
    paths = [save(image, tmp_path, format=format, quality=quality) for quality in (1, 50, 100)]
    sizes = [path.stat().st_size for path in paths]
    errors = [np.abs(pixels(path).astype(int) - image).mean() for path in paths]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert sizes[0] < sizes[2] / 2 and errors[2] < errors[0] * 0.8


def test_pictures_that_are_views_of_other_arrays(tmp_path: Path) -> None:
    wide = noisy(20, 40)
    for view in (wide[::2, ::3], wide[::-1], wide[..., ::-1], wide.transpose(1, 0, 2), np.asfortranarray(wide)):
        np.testing.assert_array_equal(pixels(save(view, tmp_path)), view)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_rgb_picture_is_a_mistake_in_the_program(image: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        save(image, tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_the_record_is_inside(format: str, tmp_path: Path) -> None:
    path = save(smooth(16, 16), tmp_path, format=format, parameters="a 🚀\nSteps: 1")
    assert media.read_record(path) == RECORD
    if format == "png":
        with Image.open(path) as picture:
            assert isinstance(picture, Image.Image) and set(picture.info) == {"diffuse", "parameters"}
            assert json.loads(picture.info["diffuse"]) == RECORD
            assert picture.info["parameters"] == "a 🚀\nSteps: 1"
    else:
        description, comment = exif(path)
        assert json.loads(description) == RECORD
        assert comment == "a 🚀\nSteps: 1"


# What a command line can hold, bytes that are not UTF-8 among it, and NUL from a file of prompts.
ANYTHING = st.text(
    st.characters(exclude_categories=("Cs",)) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)


@settings(max_examples=40, deadline=None)
@given(text=ANYTHING, format=st.sampled_from(FORMATS))
@example(text="\0\udc80\udfff", format="png")
@example(text="\0\udc80\udfff", format="webp")
def test_any_text_in_the_record_comes_back(text: str, format: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(smooth(2, 2), Path(folder), format=format, record={"prompt": text}, parameters=text)
        assert media.read_record(path) == {"prompt": text}


def test_a_record_that_no_jpg_can_hold_is_said_to_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A JPG's marker holds 64 KiB: the line of parameters goes first, then the record."""
    half = {"prompt": "x" * 40_000, "image": {"seed": 1}}
    path = save(smooth(4, 4), tmp_path, format="jpg", record=half, parameters="y" * 40_000)
    assert media.read_record(path) == half
    assert exif(path)[1] == ""
    assert not caplog.records
    path = save(smooth(4, 4), tmp_path, format="jpg", record={**half, "prompt": "x" * 70_000})
    assert pixels(path).shape == (4, 4, 3)
    assert media.read_record(path)["image"] == {"seed": 1}
    assert "output.format=png" in caplog.text
    for format in ("png", "webp"):  # which have no such limit
        large = {"prompt": "x" * 200_000}
        assert media.read_record(save(smooth(4, 4), tmp_path, format=format, record=large)) == large


def made_record(**changes: Any) -> dict[str, Any]:
    request = {"prompt": "a cat", "negative_prompt": "", "width": 48, "height": 64}
    request |= {"num_inference_steps": 20, "guidance_scale": 7.0} | changes
    return {
        "diffuse": "1.2",
        "request": request,
        "weights": {"source": "owner/some-model", "sha256": "0123456789abcdef"},
        "config": {"scheduler": {"name": "ddim"}, "model": {"name": "sd21"}},
        "image": {"seed": 8},
    }


def settings_line(line: str) -> dict[str, str]:
    """The pairs of AUTOMATIC1111's last line: `Name: value, Name: "quoted, value"`."""
    pairs, decoder = {}, json.JSONDecoder()
    while line:
        name, line = line.split(": ", 1)
        if line.startswith('"'):
            value, end = decoder.raw_decode(line)
            line = line[end:].removeprefix(", ")
        else:
            value, _, line = line.partition(", ")
        assert name not in pairs
        pairs[name] = value
    return pairs


def test_parameters_are_laid_out_as_viewers_know_them() -> None:
    lines = media.parameters_text(made_record(negative_prompt="a dog"), "DDIM").split("\n")
    assert lines[:2] == ["a cat", "Negative prompt: a dog"]
    assert lines[2].startswith("Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 8, Size: 48x64, Model hash: 0123456789, ")
    assert settings_line(lines[2])["Model"] == "some-model"
    without = media.parameters_text(made_record(), "DDIM").split("\n")
    assert without == [lines[0], lines[2]]
    assert settings_line(media.parameters_text(made_record(guidance_scale=1.25)).split("\n")[-1])["CFG scale"] == "1.25"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"prompt": "a (cat)"}, "None"),
        ({"negative_prompt": "[x]"}, "None"),
        ({"prompt": "a (cat)", "prompt_syntax": "weighted"}, None),
        ({"prompt": "a (cat)", "prompt_syntax": "plain"}, "None"),
    ],
)
def test_brackets_that_are_no_weights_are_said_to_be_none(changes: dict[str, Any], said: str | None) -> None:
    """As the web UI says it, in which they would be weights otherwise."""
    pairs = settings_line(media.parameters_text(made_record(**changes)).split("\n")[-1])
    assert pairs.get("Emphasis") == said


@pytest.mark.parametrize("source", ["/models/with, comma", 'say "yes": no', "C:\\models", "line\nbreak", "plain"])
def test_values_that_would_break_the_line_are_quoted(source: str) -> None:
    record = made_record() | {"weights": {"source": source, "sha256": None}}
    lines = media.parameters_text(record).split("\n")
    pairs = settings_line(lines[-1])
    assert pairs["Model"] == Path(source).name
    assert "Model hash" not in pairs
    assert len(lines) == 2


def test_a_command_writes_every_format(tmp_path: Path) -> None:
    """The same request in each: the exact pixels in PNG, close ones in the others, the same record in all."""
    request = ('prompt=a "red, round" apple: 100%', "negative_prompt=blue", "seed=5")
    paths = {}
    for format in FORMATS:
        done = smoke(*request, "output.dir=out", f"output.format={format}", cwd=tmp_path)
        (paths[format],) = (tmp_path / path for path in done.paths)
    exact = pixels(paths["png"]).astype(int)
    assert exact.shape == (64, 64, 3) and exact.std() > 10
    for format, path in paths.items():
        assert path == tmp_path / "out" / f"a__red__round__apple__100__5.{format}"
        assert np.abs(pixels(path) - exact).mean() < 5
        record = media.read_record(path)
        assert record["request"]["prompt"] == 'a "red, round" apple: 100%'
        assert record["image"]["pixels_sha256"] == pixels_sha256(exact.astype(np.uint8))
        text = Image.open(path).info["parameters"] if format == "png" else exif(path)[1]
        prompt, negative, line = text.split("\n")
        assert (prompt, negative) == ('a "red, round" apple: 100%', "Negative prompt: blue")
        pairs = settings_line(line)
        assert (pairs["Seed"], pairs["Steps"], pairs["Size"], pairs["Sampler"]) == ("5", "1", "64x64", "DDIM")
        assert pairs["Model hash"] == record["weights"]["sha256"][:10]


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
    stem = media.file_stem(prompt, seed)
    assert re.fullmatch(r"[A-Za-z0-9_]{1,50}_\d+", stem)
    assert stem.endswith(f"_{seed}")


def test_a_name_from_a_prompt_keeps_its_words() -> None:
    assert media.file_stem("a cat, on a mat", 7) == "a_cat__on_a_mat_7"
    assert media.file_stem("word " * 30, 7) == ("word_" * 10) + "_7"
    assert media.file_stem("", 7) == media.file_stem("🚀/..", 7) == "image_7"


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
    ["", ".", "..", "a/b", "/a", "a\\b", "a\0b", ".a", "a.", " a", "a ", "con", "NUL.x", "a:b", "a\nb", "a\udce9"],
)
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        save(smooth(1, 1), tmp_path, name)
    with pytest.raises(MediaError):
        media.file_stem("prompt", 1, name)
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
    begin = FORK.Barrier(writers)

    def write(writer: int) -> None:
        begin.wait()
        for number in range(each):
            save(np.full((4, 4, 3), writer * each + number, np.uint8), tmp_path)

    processes = [FORK.Process(target=write, args=(writer,)) for writer in range(writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
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

    process = FORK.Process(target=write)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGXFSZ
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(media.TEMPORARY) and rest.suffix == ".tmp" and rest.stat().st_size == 4096
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


def refuse(action: Callable[[], Any], *said: str) -> None:
    with pytest.raises(DiffuseError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1
    assert all(text in str(caught.value) for text in said), str(caught.value)


def test_formats_qualities_and_sizes_that_do_not_exist(tmp_path: Path) -> None:
    image = smooth(2, 2)
    refuse(lambda: save(image, tmp_path, format="gif"), "output.format", "png, jpg, webp")
    for quality in (0, 101, True, 1.5):
        refuse(lambda quality=quality: save(image, tmp_path, format="jpg", quality=quality), "output.quality")
    refuse(lambda: save(np.zeros((1, 16384, 3), np.uint8), tmp_path, format="webp"), "16383", "png")
    refuse(lambda: save(np.zeros((65536, 1, 3), np.uint8), tmp_path, format="jpg"), "65535", "png")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "x" * 300, "nul\0byte"):
        refuse(lambda folder=folder: media.check_output(tmp_path / folder), "output.dir", "choose")
    refuse(lambda: media.check_output(Path("/proc/nowhere")), "output.dir")
    media.check_output(tmp_path / "not" / "there" / "yet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pictures_without_a_record(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    for suffix in FORMATS:
        picture.save(tmp_path / f"foreign.{suffix}")
        refuse(lambda suffix=suffix: media.read_record(tmp_path / f"foreign.{suffix}"), "holds no record")
    picture.save(tmp_path / "other.gif")
    (tmp_path / "text.png").write_text("no picture")
    whole = save(smooth(8, 8), tmp_path).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:20])
    for name in ("other.gif", "text.png", "cut.png", "missing.png", "."):
        refuse(lambda name=name: media.read_record(tmp_path / name), str(tmp_path))
