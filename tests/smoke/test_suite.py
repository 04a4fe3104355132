"""`diffuse experiment=smoke`: all is well here, and whatever is made to go wrong is found, said and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Done, diffuse
from junitparser import Failure, JUnitXml
from PIL import Image

import diffuse as package
from diffuse.config.compose import compose_config
from diffuse.config.groups import TINY
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.media.pixels import pixels_sha256
from diffuse.media.save import save_media
from diffuse.pipelines.latent_diffusion import LatentDiffusion
from diffuse.run.generation import Generation
from diffuse.smoke import cases, reference, suite

TEXT_TO_IMAGE = next(case for case in cases.cases() if case.name == "tiny, text to image")


@pytest.fixture(scope="module")
def smoked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A run of the whole suite, and its folder."""
    folder = tmp_path_factory.mktemp("smoked")
    return diffuse("experiment=smoke", "output.dir=out", "--junit", "junit.xml", cwd=folder), folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return suite.write_inputs(tmp_path_factory.mktemp("inputs"))


def table(done: Done) -> dict[str, str]:
    """Case -> result, as standard error has it."""
    found = re.findall(r"^(.+?) +(?:\d+\.\d\d)  (.*)$", done.err, re.MULTILINE)
    return {name.strip(): result for name, result in found}


def test_all_is_well(smoked: tuple[Done, Path]) -> None:
    done, folder = smoked
    assert done.status == 0, done.err
    names = [case.name for case in cases.cases()]
    assert list(table(done)) == names and "OFF" not in done.err
    assert done.err.splitlines()[-1].startswith(f"all {len(names)} smoke cases are as they should be")
    assert len(done.paths) == len(names) + 1  # one of them makes two pictures
    for path in done.paths:
        assert path.parent == Path("out")
        record = read_record(folder / path)
        if path.suffix == ".png":
            assert record["image"]["pixels_sha256"] == pixels_sha256(np.asarray(Image.open(folder / path)))
        assert record["config"]["tracking"]["name"] == "none"
    assert not (folder / "outputs").exists()


def test_the_junit_file_says_the_same(smoked: tuple[Done, Path]) -> None:
    done, folder = smoked
    parsed = JUnitXml.fromfile(str(folder / "junit.xml"))
    (found,) = list(parsed)
    tests = list(found)
    assert [test.name for test in tests] == list(table(done))
    assert (found.tests, found.failures, found.errors, found.skipped) == (len(tests), 0, 0, 0)
    assert all(test.is_passed and test.classname == "diffuse.smoke" for test in tests)
    assert found.time == pytest.approx(sum(test.time for test in tests), abs=0.1)


def test_it_takes_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case under the settings that the user gave; on what is then another platform, near is enough."""
    monkeypatch.setattr(suite, "cases", lambda: [TEXT_TO_IMAGE])
    settings = ("hardware.dtype=bfloat16", "memory_profile=full_gpu", "output.format=jpg", "output.quality=80")
    done = diffuse("experiment=smoke", "output.dir=out", *settings, cwd=tmp_path)
    assert done.status == 0, done.err
    (path,) = done.paths
    record = read_record(tmp_path / path)
    assert path.suffix == ".jpg" and record["hardware"]["dtypes"]["unet"] == "bfloat16"
    assert record["hardware"]["memory_profile"]["name"] == "full_gpu"
    assert re.search(r"up to \d+ of 255 levels from what is recorded", table(done)["tiny, text to image"])


def test_it_is_tracked_where_asked(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "cases", lambda: [TEXT_TO_IMAGE])
    store = tmp_path / "mlflow.db"
    store.write_bytes(empty.read_bytes())
    done = diffuse("experiment=smoke", "tracking=mlflow", f"tracking.uri=sqlite:///{store}", cwd=tmp_path)
    assert done.status == 0, done.err
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{store}")
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert found.data.params["prompt"] == "a cactus on a pink background"


# What is off is found


def one_off(monkeypatch: pytest.MonkeyPatch, cwd: Path, said: str) -> None:
    """Of two cases the first fails, and the command, its table and its JUnit file say so; the second is still run."""
    pair = [TEXT_TO_IMAGE, next(case for case in cases.cases() if case.name == "SD 2.x distilled, LCM")]
    monkeypatch.setattr(suite, "cases", lambda: pair)
    done = diffuse("experiment=smoke", "output.dir=out", "--junit=junit.xml", cwd=cwd)
    assert done.status == 1, done.err
    results = table(done)
    assert results["tiny, text to image"].startswith("OFF: ") and said in results["tiny, text to image"], done.err
    assert "OFF" not in results["SD 2.x distilled, LCM"]
    assert done.err.splitlines()[-1] == "diffuse: 1 of 2 smoke cases are off, as the table says"
    first, second = next(iter(JUnitXml.fromfile(str(cwd / "junit.xml"))))
    assert second.is_passed and isinstance(first.result[0], Failure) and said in first.result[0].message


def on_tiny(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """A decoder that changes the shipped checkpoint's pictures, and nobody else's."""
    original = LatentDiffusion._decode

    def decode(self: LatentDiffusion, latents: torch.Tensor) -> np.ndarray:
        frames = original(self, latents)
        is_shipped = str(self.checkpoint.source) == str(TINY)
        return change(frames[:, 0])[:, None] if is_shipped else frames

    return decode


def darker(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels // 2, np.uint8)


def one_level(pixels: np.ndarray) -> np.ndarray:
    changed = pixels.copy()
    changed[0, 0, 0, 0] ^= 1
    return changed


def test_pixels_that_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(LatentDiffusion, "_decode", on_tiny(darker))
    one_off(monkeypatch, tmp_path, "of 255 levels from what is recorded")


def test_one_level_is_too_much_where_the_platform_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And nothing elsewhere."""
    key: list[str] = []
    monkeypatch.setattr(suite, "cases", lambda: [TEXT_TO_IMAGE])
    monkeypatch.setattr(reference, "platform_key", lambda about: key[0])
    monkeypatch.setattr(LatentDiffusion, "_decode", on_tiny(one_level))
    (digests, *_) = reference.read_digests().values()
    monkeypatch.setattr(reference, "read_digests", lambda: {"here": digests})
    key[:] = ["elsewhere"]
    assert diffuse("experiment=smoke", "output.dir=out", cwd=tmp_path).status == 0
    key[:] = ["here"]
    done = diffuse("experiment=smoke", "output.dir=out", cwd=tmp_path)
    assert done.status == 1 and "should be the same to the bit" in done.err


def test_a_picture_of_another_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(LatentDiffusion, "_decode", on_tiny(lambda pixels: pixels[:, :32]))
    one_off(monkeypatch, tmp_path, "the pictures are [1, 32, 64, 3] and should be [1, 64, 64, 3]")


def test_a_picture_of_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(LatentDiffusion, "_decode", on_tiny(np.zeros_like))
    one_off(monkeypatch, tmp_path, "the pictures show nothing")


def test_a_run_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(pixels: np.ndarray) -> np.ndarray:
        raise ValueError("a bug\nof two lines\x00")

    monkeypatch.setattr(LatentDiffusion, "_decode", on_tiny(fail))
    one_off(monkeypatch, tmp_path, "ValueError: a bug of two lines")


def test_a_case_without_a_recorded_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = reference.reference_files
    missing = [tmp_path / "no.png"]
    monkeypatch.setattr(
        reference, "reference_files", lambda slug, count: missing if slug == TEXT_TO_IMAGE.slug else files(slug, count)
    )
    one_off(monkeypatch, tmp_path, "no picture is recorded for it")


@pytest.fixture
def made(inputs: dict[str, str], tmp_path: Path) -> Generation:
    cfg = compose_config(["experiment=smoke", f"output.dir={tmp_path / 'out'}"])
    return suite.run_case(TEXT_TO_IMAGE, cfg, (), inputs)


def test_what_is_made_has_no_faults(made: Generation) -> None:
    assert suite.picture_faults(made, TEXT_TO_IMAGE) == suite.record_faults(made) == []


def test_files_that_are_not_what_was_made(made: Generation) -> None:
    (path,) = made.paths
    other = np.asarray(Image.open(path)).copy()
    other[0, 0] = 255 - other[0, 0]
    record = read_record(path)
    path.unlink()
    save_media(other[None], path.parent, path.stem, record={**record, "seed": 9})
    (pixels, about) = suite.picture_faults(made, TEXT_TO_IMAGE)
    assert "does not hold the pixels" in pixels and "is not that of the run" in about
    assert "of 2 files" not in pixels
    made.paths.clear()
    assert suite.picture_faults(made, TEXT_TO_IMAGE) == ["0 of 1 files were written"]


def test_latents_that_are_not_finite(made: Generation) -> None:
    broken = replace(made, latents={"image": torch.full_like(made.latents["image"], float("nan"))})
    assert "its latents are not finite" in suite.picture_faults(broken, TEXT_TO_IMAGE)


@pytest.mark.parametrize(
    "name", ["git", "config.strength", "request.seed", "weights.sha256", "versions.torch", "images"]
)
def test_records_that_lack_something(name: str, made: Generation) -> None:
    lacking: dict[str, Any] = json.loads(json.dumps(made.record))
    node = lacking
    *parts, last = name.split(".")
    for part in parts:
        node = node[part]
    del node[last]
    (fault,) = suite.record_faults(replace(made, record=lacking))
    assert fault == f"the record has no {name}"


def test_python_makes_requests_and_runs_no_suite() -> None:
    with pytest.raises(ConfigError, match="suite=smoke: is run by the command alone"):
        package.txt2img("a cat", experiment="smoke")
