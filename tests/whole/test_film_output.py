"""What follows the pipeline treats films with sound as it treats pictures: saving, records, and making them again.

The films are those of `films.MovingPictures`, through the command and everything behind it.
"""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from command import Done, diffuse
from films import FILM, FRAMES, RATE, SILENT
from PIL import Image, PngImagePlugin

from diffuse import api
from diffuse.config.compose import compose_config
from diffuse.media.load import read_record
from diffuse.media.pixels import frame_strip, pixels_sha256, psnr
from diffuse.media.save import save_media
from diffuse.media.sound import sound_sha256, sound_snr
from diffuse.media.video import Video, read_sound
from diffuse.reproduce.reproduction import find_reproduction
from diffuse.smoke import reference, suite
from diffuse.smoke.cases import Case

QUICK = ("hardware=cpu", "hardware.threads=1", "tracking=none", "num_inference_steps=1")
PROMPT = "a cactus on a pink background"
RUN = (*FILM, *QUICK, "seed=7", f"prompt={PROMPT}")
FORMATS = ("mp4", "webm", "gif", "webp", "avif", "frames", "wav")
SOUNDING = ("mp4", "webm", "frames", "wav")
LOSSLESS = 300.0


@pytest.fixture(scope="module")
def generation() -> api.Generation:
    """The film, before it is encoded."""
    return api.txt2img(PROMPT, seed=7, progress=False, overrides=[*FILM, *QUICK])


@pytest.fixture(scope="module")
def files(generation: api.Generation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The film in every format."""
    folder = tmp_path_factory.mktemp("films")
    return {format: generation.save(folder / format, format=format)[0] for format in FORMATS}


def again(file: Path, *overrides: str, cwd: Path) -> Done:
    return diffuse("reproduce", file, "tracking=none", "output.dir=again", *overrides, cwd=cwd)


@pytest.mark.parametrize("format", FORMATS)
def test_a_film_is_read_back_with_its_record(format: str, files: dict[str, Path], generation: api.Generation) -> None:
    path = files[format]
    assert list(path.parent.iterdir()) == [path]
    assert path.name == "a_cactus_on_a_pink_background_7" + ("" if format == "frames" else f".{format}")
    frames, sound = generation.frames[0], generation.sound[0]  # type: ignore[index]
    image = read_record(path)["image"]
    assert image == {
        "index": 0,
        "seed": 7,
        "pixels_sha256": pixels_sha256(frames),
        "fps": 8.0,
        "sample_rate": RATE,
        "sound_sha256": sound_sha256(sound, RATE),
    }
    assert generation.record["images"] == [image]
    if format in SOUNDING:
        theirs, rate = read_sound(path / "sound.wav" if format == "frames" else path)
        assert len(theirs) == 2 and theirs.shape[1] / rate == pytest.approx(FRAMES / 8, abs=0.1)
        if rate == RATE:  # Opus has rates of its own
            assert sound_snr(theirs, sound) > 15  # type: ignore[operator]
    if format == "wav":
        return
    video = Video.open(path)
    assert (video.width, video.height, video.has_sound) == (64, 64, format in SOUNDING)
    assert video.fps == pytest.approx(8, rel=0.05 if format == "gif" else 0.01)  # which counts hundredths of seconds
    ours = np.stack(list(video.each_frame()))
    least = {"frames": LOSSLESS, "gif": 20}.get(format, 30)
    assert ours.shape == frames.shape and psnr(ours, frames) >= least
    assert len(video.frames(4)) == 4 and np.array_equal(video.frames(100), ours)


def test_the_command_saves_films(tmp_path: Path) -> None:
    """As MP4 where no format is given. A folder of frames is one path, and no name is given twice."""
    runs = [diffuse(*RUN, *more, "output.dir=out", cwd=tmp_path) for more in ((), (), ("output.format=frames",))]
    assert [path.name for done in runs for path in done.paths] == [
        "a_cactus_on_a_pink_background_7.mp4",
        "a_cactus_on_a_pink_background_7_1.mp4",
        "a_cactus_on_a_pink_background_7",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(r.paths[0].name for r in runs)
    assert "1 film in" in runs[0].err
    records = [read_record(tmp_path / done.paths[0]) for done in runs]
    assert [record["config"]["output"]["format"] for record in records] == ["mp4", "mp4", "frames"]
    assert len({str(record["image"]) for record in records}) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    {
        "a picture's format": ((*FILM, "output.format=png"), "output.format=png holds no film; choose one of mp4"),
        "jpg": ((*FILM, "output.format=jpg"), "output.format=jpg holds no film"),
        "a film's format": (
            ("model=tiny", "output.format=mp4"),
            "output.format=mp4 is of films, and this is a picture",
        ),
        "frames": (("model=tiny", "output.format=frames"), "output.format=frames is of films"),
        "no sound": ((*SILENT, "output.format=wav"), "output.format=wav holds sound, and this film has none"),
        "quality": ((*FILM, "output.quality=0"), "output.quality=0: should be from 1 to 100"),
        "no such format": ((*FILM, "output.format=mkv"), "output.format=mkv"),
    }.values(),
)
@pytest.mark.parametrize("mode", ["run", "dry run", "plan"])
def test_a_wrong_format_is_refused_before_anything_is_computed(
    mode: str, overrides: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    words = {"run": (), "dry run": ("--dry-run",), "plan": ("plan",)}[mode]
    done = diffuse(*words, *QUICK, "prompt=x", "seed=1", "output.dir=out", *overrides, cwd=tmp_path)
    assert done.status == 2 and done.out == "" and not (tmp_path / "out").exists()
    assert len(done.err.splitlines()) == 1 and said in done.err


def test_without_ffmpeg_nothing_is_computed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    frames = (*RUN, "output.format=frames")
    for words in (RUN, frames, ("-m", *RUN, "report.make=false"), ("reproduce", files["mp4"])):
        done = diffuse(*words, "output.dir=out", cwd=tmp_path)
        assert done.status == 2 and "install imageio-ffmpeg" in done.err and "there is none" in done.err
        assert done.out == "" and not list(tmp_path.glob("**/*.mp4"))


def test_the_settings_that_have_no_effect_are_told(tmp_path: Path) -> None:
    done = diffuse("--dry-run", *RUN, "output.format=frames", "output.dir=out", cwd=tmp_path)
    assert done.out.endswith("out/a_cactus_on_a_pink_background_7\n")
    done = diffuse(*RUN, "output.format=gif", "output.quality=20", "output.dir=out", cwd=tmp_path)
    assert "output.quality=20: has no effect with output.format=gif; mp4, webm, webp or avif has a quality" in done.err


def test_a_film_in_python(generation: api.Generation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert repr(generation).startswith("<Generation: 1 film, 64 x 64, 9 frames at 8 a second, with sound, seed 7, ")
    html = generation._repr_html_()
    assert html is not None and html.count('<video controls loop src="data:video/mp4;base64,') == 1
    assert Image.open(io.BytesIO(generation._repr_png_())).size == (64, 64)
    (path,) = generation.save(tmp_path)
    assert path.suffix == ".mp4" and not caplog.text
    generation.save(tmp_path, format="avif", quality=50)
    assert "output.format=avif has no sound" in caplog.text
    picture = api.txt2img("a cat", seed=1, progress=False, overrides=["model=tiny", *QUICK])
    assert picture._repr_html_() is None and picture.record["images"][0].keys() == {"index", "seed", "pixels_sha256"}


@pytest.mark.parametrize("format", ["webm", "frames"])
def test_a_film_is_made_again(format: str, files: dict[str, Path], tmp_path: Path) -> None:
    file = files[format] / "frame_00000.png" if format == "frames" else files[format]
    done = again(file, cwd=tmp_path)
    assert done.status == 0, done.err
    assert f"{done.paths[0]}: identical" in done.err and done.paths[0].suffix == ".mp4"


@pytest.mark.parametrize("format", FORMATS)
def test_a_film_says_what_is_to_be_made_again(format: str, files: dict[str, Path], generation: api.Generation) -> None:
    """Before the run of `reproduce`, which is the same for every format."""
    found = find_reproduction(str(files[format]), ["tracking=none"])
    (image,) = generation.record["images"]
    assert found.digests == {0: image["pixels_sha256"]} and found.sounds == {0: image["sound_sha256"]}
    assert found.drafts[0].seed == 7 and found.cfg.model._target_ == FILM[1].partition("=")[2]
    assert len(found.films) == (format != "wav") and found.recorded.lossless == (format == "frames")


def changed_record(path: Path, target: Path, **image: Any) -> Path:
    """A folder of frames whose record says something else of its film."""
    shutil.copytree(path, target)
    record = read_record(path)
    record["image"] |= image
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("diffuse", json.dumps(record))
    Image.open(path / "frame_00000.png").save(target / "frame_00000.png", pnginfo=chunks)
    return target


def test_a_film_that_differs_is_told_by_how_much(files: dict[str, Path], tmp_path: Path) -> None:
    other = changed_record(files["frames"], tmp_path / "other", pixels_sha256="0" * 64)
    done = again(other, cwd=tmp_path)
    assert done.status == 1 and "up to 0 of 255 levels apart, PSNR inf dB" in done.err
    assert "it is not the recorded film" in done.err and "own pixels were changed" in done.err

    wrong = changed_record(files["frames"], tmp_path / "wrong", sound_sha256="x")
    done = again(wrong, cwd=tmp_path)
    assert done.status == 2 and "is not a picture of its run" in done.err

    silent = changed_record(files["frames"], tmp_path / "silent", sound_sha256="0" * 64)
    Image.new("RGB", (64, 64)).save(silent / "frame_00003.png")
    done = again(silent, cwd=tmp_path)
    assert done.status == 1 and "identical; its sound is not identical; but the file's own pixels were" in done.err


def test_quality_is_measured_against_a_film(files: dict[str, Path], tmp_path: Path) -> None:
    run = ("seed=7", f"prompt={PROMPT}", "output.dir=out", *QUICK)
    measured = {}
    for format in ("frames", "mp4"):
        against = f"objective.reference={files[format]}"
        made = api.txt2img(PROMPT, seed=7, progress=False, overrides=[*FILM, *QUICK, against])
        measured[format] = made.metrics["quality/psnr"]
    assert measured["frames"] == 100 and 25 < measured["mp4"] < 60
    picture = Image.new("RGB", (64, 64))
    for name in ("picture.png", "picture.avif"):
        picture.save(tmp_path / name)
    for model, other, said in (
        (FILM, tmp_path / "picture.png", "is a picture, and a film is made"),
        (FILM, tmp_path / "picture.avif", "is a picture, and a film is made"),
        (("model=tiny",), files["mp4"], "is a film, and a picture is made"),
        (FILM, tmp_path / "none.mp4", "there is no such file"),
    ):
        done = diffuse(*run, *model, f"objective.reference={other}", cwd=tmp_path)
        assert done.status == 2 and said in done.err and not done.out and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("format", ["mp4", "frames", "wav"])
def test_a_smoke_run_checks_films(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("a film", (*FILM, "seed=7", "prompt=a cactus", "num_inference_steps=1"))
    composed = compose_config([*QUICK, f"output.dir={tmp_path}", f"output.format={format}"])
    made = suite.run_case(case, composed, (), {})
    assert suite.picture_faults(made, case) == suite.record_faults(made) == []

    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "read_digests", dict)
    (path,) = reference.reference_files(case.slug, 1)
    Image.fromarray(frame_strip(made.frames[0])).save(path)
    assert reference.compare_with_reference(case.slug, made) == ("as recorded, to the bit", "")
    (image,) = made.record["images"]
    digests = [f"{image['pixels_sha256']}+{image['sound_sha256']}"]
    assert reference.recorded_digests(made.record) == digests
    known = {reference.platform_key(made.record): {case.slug: digests}}
    monkeypatch.setattr(reference, "read_digests", lambda: known)
    assert reference.compare_with_reference(case.slug, made)[0] == "as recorded on this platform, to the bit"
    if format == "frames":
        shutil.copy(made.paths[0] / "frame_00001.png", made.paths[0] / "frame_00002.png")
        assert suite.picture_faults(made, case) == ["a_film does not hold the pixels that its record speaks of"]


def test_no_film_stands_in_memory_twice(tmp_path: Path) -> None:
    frames = np.zeros((96, 128, 128, 3), np.uint8)
    frames[40:] = 90
    tracemalloc.start()
    try:
        digest = pixels_sha256(frames)
        path = save_media(frames, tmp_path, "film", format="frames", record={}, fps=8)
        video = Video.open(path)
        assert video.pixels_sha256() == digest and psnr(frames, frames) > 1000
        save_media(frames, tmp_path, "film", record={}, fps=8)
        assert sum(1 for _ in Video.open(tmp_path / "film.mp4").each_frame()) == len(frames)
        assert tracemalloc.get_traced_memory()[1] < frames.nbytes / 2
    finally:
        tracemalloc.stop()
