"""`--dry-run`: it says what a command would do, and does nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from command import Done, diffuse
from sweeps import QUICK, swept

from diffuse.media.load import read_record
from diffuse.run import run


def listed(*arguments: str, cwd: Path, status: int = 0) -> Done:
    """What `--dry-run` prints; the folder is as before."""
    before = {path: path.stat().st_mtime_ns for path in cwd.rglob("*")}
    done = diffuse("--dry-run", *arguments, cwd=cwd)
    assert done.status == status, done.err
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob("*")} == before
    return done


def test_the_jobs_of_a_sweep(tmp_path: Path) -> None:
    made = swept("num_inference_steps=1", "seed=1,2", cwd=tmp_path)
    done = listed("-m", *QUICK, "num_inference_steps=1,2", "seed=2,3,2", cwd=tmp_path)
    assert done.out.splitlines() == [
        f"there   num_inference_steps=1 seed=2 -> {made.paths[1]}",
        "make    num_inference_steps=1 seed=3",
        "double  num_inference_steps=1 seed=2",
        "make    num_inference_steps=2 seed=2",
        "make    num_inference_steps=2 seed=3",
        "double  num_inference_steps=2 seed=2",
    ]
    assert "6 jobs: 1 are there, 3 to make, 2 given twice, in out; nothing was made" in done.err


def test_a_sweep_that_nobody_has_begun_leaves_nothing(tmp_path: Path) -> None:
    """Neither its folder nor the store."""
    done = listed("-m", "seed=1,2", "num_inference_steps=1", cwd=tmp_path)
    assert done.out.splitlines() == ["make    seed=1", "make    seed=2"]
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_was_changed_is_made_again(tmp_path: Path) -> None:
    (path,) = swept("num_inference_steps=1", "seed=5", cwd=tmp_path).paths
    assert listed("-m", *QUICK, "num_inference_steps=1", "seed=5", cwd=tmp_path).out.startswith("there")
    (tmp_path / path).unlink()
    assert listed("-m", *QUICK, "num_inference_steps=1", "seed=5", cwd=tmp_path).out.startswith("make")


def test_fields_that_go_together_and_experiments(tmp_path: Path) -> None:
    zipped = ("seed=1,2", "width=64,72", "hydra.sweeper.zip=[seed,width]")
    assert listed("-m", *zipped, cwd=tmp_path).out.splitlines() == [
        "make    seed=1 width=64",
        "make    seed=2 width=72",
    ]
    assert len(listed("experiment=seeds_by_steps", cwd=tmp_path).out.splitlines()) == 12
    assert "chooses each job" in listed("experiment=tune_guidance", cwd=tmp_path).err


def test_wrong_jobs_are_told(tmp_path: Path) -> None:
    done = listed("-m", "seed=1", "width=64,65", cwd=tmp_path, status=2)
    assert done.out.splitlines() == ["make    width=64", "wrong   width=65"]
    lines = done.err.splitlines()
    assert lines[0] == "diffuse: width=65: should be a multiple of 8 for model=tiny; try 64"
    assert lines[-1] == "diffuse: 1 of the sweep's jobs is wrong, as said above"


def test_what_all_jobs_lack_is_said_once(tmp_path: Path) -> None:
    done = listed("experiment=strength_ladder", cwd=tmp_path, status=2)
    assert done.err.splitlines()[-1] == "diffuse: strength: is of a picture to start from; add input_image=FILE"
    assert done.err.count("input_image") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("-m", "prompt='a cat, small', a dog"),
            "note: prompt is one text here; of several, each is in quotes: prompt=",
        ),
        (("-m", "seed=1"), "note: -m makes one job here, as no field has several values; write "),
        (("prompt=choice(a cat, a dog)",), "note: prompt=choice(a cat, a dog) is taken literally; diffuse -m "),
    ],
)
def test_what_is_no_sweep_is_noted(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert listed("hardware=cpu", *arguments, cwd=tmp_path).err.startswith(said)


def test_a_sweeper_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "optuna" in name else find(name))
    done = listed("experiment=tune_guidance", cwd=tmp_path, status=2)
    assert "pip install 'diffuse[optuna]'" in done.err


def test_a_single_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "compute", None)
    done = listed("prompt=a cat, small", "seed=7", "output.dir=out", "num_inference_steps=3", cwd=tmp_path)
    assert done.out == "make    seed 7, 64 x 64, 3 steps: a cat, small -> out/a_cat__small_7.png\n"
    assert "its weights are here; nothing was made" in done.err
    drawn = listed("num_images=2", cwd=tmp_path)
    assert "a drawn seed" in drawn.out and "2 pictures" in drawn.out


def test_each_prompt_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    done = listed("prompt_file=prompts.txt", "seed=1", "output.dir=out", cwd=tmp_path)
    assert [line.rpartition("/")[2] for line in done.out.splitlines()] == ["a_cat_1.png", "a_dog_1.png"]


def test_weights_that_are_not_here_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    done = listed("model=sdxl", "prompt=x", "seed=1", cwd=tmp_path)
    assert "the checkpoint's size" in done.out and "they would be fetched" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("width=65",), "should be a multiple of 8"),
        (("crop_left=8",), "crop_left"),
        (("model.source=./nowhere",), "does not exist"),
        (("experiment=smoke",), "leave it out"),
        (("--cfg", "job"), "leave one of them out"),
        (("tracking.uri=foo://x",), "tracking.uri=foo://x is of a kind that MLflow does not know"),
        (("-m", "tracking.uri=foo://x", "seed=1,2"), "tracking.uri=foo://x is of a kind that MLflow does not know"),
        (("--junit", "x.xml"), "leave one of them out"),
        (("output.dir=/dev/null",), "output.dir=/dev/null: /dev/null is a file; choose a folder"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = listed(*arguments, cwd=tmp_path, status=2)
    assert (done.out, len(done.err.splitlines())) == ("", 1) and said in done.err


def test_an_experiment_is_a_sweep_with_other_options_too(tmp_path: Path) -> None:
    """`--yes` beside an experiment that is a sweep made one run of it."""
    few = ("num_inference_steps=1,2", "seed=1")
    done = diffuse("--yes", "experiment=seeds_by_steps", *QUICK, *few, cwd=tmp_path)
    assert done.status == 0 and len(done.paths) == 2, done.err
    assert read_record(tmp_path / done.paths[0])["request"]["num_inference_steps"] == 1
