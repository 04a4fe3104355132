"""A sweep by Optuna: it finds better settings than chance does, goes on where it was, and says what it found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import SMOKE, Done, diffuse
from omegaconf import OmegaConf
from PIL import Image

from diffuse.config import objective
from diffuse.config.groups import PACKAGE
from diffuse.media.images import InputImage
from diffuse.sweep.optuna import with_quotes

REFERENCE = PACKAGE / "tiny" / "cactus_100_steps.png"
CHANCE = 29.09  # decibel, the best of twenty by `hydra/sweeper/sampler=random`
TUNE = ("experiment=tune_guidance", "hardware.threads=1", "tracking=none", "report.make=false")


def tune(*overrides: Any, cwd: Path, status: int = 0) -> Done:
    done = diffuse(*TUNE, *overrides, cwd=cwd)
    assert done.status == status, done.err
    return done


def best(done: Done) -> float:
    (found,) = re.findall(r"^best quality/psnr: ([\d.]+) with guidance_scale=", done.err, re.MULTILINE)
    return float(found)


def pictures(folder: Path) -> dict[float, Path]:
    """By how near they are to the reference."""
    reference = np.asarray(Image.open(REFERENCE)).astype(float)
    found = {}
    for path in folder.glob("*/*.png"):
        error = np.mean((np.asarray(Image.open(path)) - reference) ** 2)
        found[10 * np.log10(255**2 / error)] = path
    return found


def test_it_finds_better_settings_than_chance_and_goes_on_where_it_was(tmp_path: Path) -> None:
    found = tune("hydra.sweeper.n_trials=20", "output.dir=tpe", cwd=tmp_path)
    assert len(found.paths) == 20
    assert best(found) > CHANCE + 1  # decibel

    # What is said is what is there.
    nearest = max(pictures(tmp_path / "tpe"))
    assert best(found) == pytest.approx(nearest, abs=0.01)
    results: Any = OmegaConf.load(tmp_path / "tpe" / "optimization_results.yaml")
    assert results.best_value == pytest.approx(nearest)
    assert (
        f"guidance_scale_{results.best_params.guidance_scale}"[:20] in pictures(tmp_path / "tpe")[nearest].parent.name
    )

    # Begun again it asks for the same, of which it makes what is missing, and goes on from there.
    shutil.rmtree(pictures(tmp_path / "tpe")[nearest].parent)
    again = tune("hydra.sweeper.n_trials=21", "output.dir=tpe", cwd=tmp_path)
    assert "21 jobs: 2 made, 19 were there, 0 failed" in again.err
    assert best(again) >= best(found)


def test_jobs_that_fail_are_told_and_the_others_are_judged(tmp_path: Path) -> None:
    asked = (*SMOKE, "tracking=none", "report.make=false", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6")
    judged = ("objective.metric=quality/psnr", f"objective.reference={REFERENCE}", "width=choice(64,4096)")
    done = diffuse("-m", *asked, *judged, "num_inference_steps=1", "output.dir=out", cwd=tmp_path)
    assert done.status == 2, done.err
    assert "width=4096" in done.err and re.search("^best quality/psnr: .* with width=64$", done.err, re.MULTILINE)
    assert "Traceback" not in done.err and "Error executing job" not in done.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.metric=psnr"], "did you mean quality/psnr?"),
        (["objective.metric=null"], "add objective.metric="),
        (["objective.reference=null"], "add objective.reference=FILE"),
        (["objective.reference=no.png"], "no.png: there is no such file"),
    ],
)
def test_an_objective_that_cannot_be(overrides: list[str], said: str, tmp_path: Path) -> None:
    done = tune(*overrides, cwd=tmp_path, status=2)
    assert said in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_by_itself_records_how_near_it_is(tmp_path: Path) -> None:
    """And a reference of another size is refused before anything is made."""
    Image.new("RGB", (32, 64)).save(tmp_path / "small.png")
    done = diffuse(*SMOKE, "tracking=none", "objective.reference=small.png", cwd=tmp_path)
    assert (done.status, done.paths) == (2, [])
    assert "objective.reference: is 32 x 64 pixels and the picture 64 x 64" in done.err


def test_psnr() -> None:
    grey = np.full((1, 1, 8, 8, 3), 100, np.uint8)
    reference = InputImage(grey[0, 0] + 10, "")
    assert objective.reference_quality(grey, reference) == {"quality/psnr": pytest.approx(10 * np.log10(255**2 / 100))}
    assert objective.reference_quality(grey, InputImage(grey[0, 0], "")) == {"quality/psnr": 100.0}
    assert objective.reference_quality(grey, None) == {}


def test_texts_in_quotes_stay_in_quotes() -> None:
    assert with_quotes('prompt=choice("it\'s","1e3",a cat)') == 'prompt="it\'s","1e3",a\\ cat'
    for line in ("seed=1", "guidance_scale=interval(1,2)", 'prompt=choice("one")', "seed=range(1,3)"):
        assert with_quotes(line) == line
