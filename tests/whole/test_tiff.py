"""TIFF wherever formats matter: saved by the command and in Python, read by other programs, reproduced, compared, and
found again by a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command import Done, diffuse
from PIL import Image
from saved_images import exif, noisy, refuse, save

import diffuse as package
from diffuse.media.images import read_image
from diffuse.media.load import image_sha256, read_record
from diffuse.media.pixels import pixels_sha256

RUN = ("hardware=cpu", "hardware.threads=1", "tracking=none", "num_inference_steps=1", "output.format=tiff")


def run(*arguments: object, cwd: Path, status: int = 0) -> Done:
    done = diffuse(*arguments, cwd=cwd)
    assert done.status == status, done.err
    return done


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    (path,) = run(*RUN, "prompt=a (red) pear é", "seed=7", "output.dir=out", cwd=folder).paths
    assert path.suffix == ".tiff"
    return folder / path


def test_another_reader_finds_the_very_pixels_and_the_record(saved: Path) -> None:
    with tifffile.TiffFile(saved) as file:
        (page,) = file.pages
        pixels, description = page.asarray(), page.tags["ImageDescription"].value
        comment = page.tags["ExifTag"].value["UserComment"]
    record = read_record(saved)
    assert json.loads(description) == record
    assert pixels_sha256(pixels) == record["image"]["pixels_sha256"] == image_sha256(saved)
    assert comment.splitlines()[0] == "a (red) pear é" and "Seed: 7" in comment
    assert exif(saved) == (description, comment)
    assert np.array_equal(read_image(str(saved)).pixels, pixels)  # and it can be started from


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (3, 65), (130, 7)])
def test_no_pixel_is_lost(size: tuple[int, int], tmp_path: Path) -> None:
    image = noisy(*size)
    paths = [save(image, tmp_path, format="tiff", quality=quality, parameters="") for quality in (1, 100)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    for path in paths:
        assert np.array_equal(tifffile.imread(path), image)
        with Image.open(path) as opened:
            assert (opened.format, opened.mode, opened.size) == ("TIFF", "RGB", size[::-1])


def test_a_long_record_and_a_damaged_file(tmp_path: Path) -> None:
    large = {"prompt": "x" * 200_000}
    path = save(noisy(8, 8), tmp_path, format="tiff", record=large)
    assert read_record(path) == large
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, 150, 1000, len(whole) // 2):
        path.write_bytes(whole[:length])
        refuse(lambda: read_record(path), str(path))
        refuse(lambda: image_sha256(path), str(path))
        done = run("reproduce", path, "tracking=none", cwd=tmp_path, status=2)
        assert done.err.count("\n") == 1, done.err


def test_in_python(tmp_path: Path) -> None:
    made = package.txt2img("a cat", seed=1, overrides=["hardware=cpu", "num_inference_steps=1", "tracking=none"])
    (path,) = made.save(tmp_path, "x", format="tiff")
    assert path == tmp_path / "x.tiff" and np.array_equal(tifffile.imread(path), made.images[0])


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_that_does_not_exist_is_refused(quality: int, tmp_path: Path) -> None:
    done = run(*RUN, f"output.quality={quality}", "output.dir=out", cwd=tmp_path, status=2)
    assert "output.quality" in done.err and done.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_it_is_reproduced_and_a_change_is_found_out(saved: Path, tmp_path: Path) -> None:
    again = ("tracking=none", "output.dir=again")
    done = run("reproduce", saved, *again, "output.format=tiff", cwd=tmp_path)
    assert done.paths[0].suffix == ".tiff" and "identical" in done.err
    assert image_sha256(tmp_path / done.paths[0]) == image_sha256(saved)
    changed = save(255 - tifffile.imread(saved), tmp_path, format="tiff", record=read_record(saved))
    done = run("reproduce", changed, *again, cwd=tmp_path, status=1)
    assert "the file's own pixels were changed" in done.err


def test_a_sweep_finds_it_again_and_a_comparison_shows_it(tmp_path: Path) -> None:
    command = ("-m", *RUN, "seed=1,2,3", "output.dir=out")
    first = run(*command, cwd=tmp_path)
    assert "3 made, 0 were there" in first.err and {path.suffix for path in first.paths} == {".tiff"}
    assert "0 made, 3 were there" in run(*command, cwd=tmp_path).err

    page = (tmp_path / "out" / "report" / "report.html").read_text(encoding="utf-8")
    files = run("compare", "out", "--out", "compared", cwd=tmp_path).paths
    for text in (page, (tmp_path / files[0]).read_text(encoding="utf-8")):
        assert all(path.name in text for path in first.paths) and "image/webp" in text and "image/tiff" not in text

    cut, painted, _ = (tmp_path / path for path in first.paths)
    cut.write_bytes(cut.read_bytes()[:-100])
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(painted)
    again = run(*command, cwd=tmp_path)
    assert "2 made, 1 were there" in again.err
    assert image_sha256(cut) == read_record(cut)["image"]["pixels_sha256"]
    assert not tifffile.imread(painted).any() and again.paths[1].name == f"{painted.stem}_1.tiff"
