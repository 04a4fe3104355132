"""`glob()` in a sweep, of files and of options; and experiments that are swept over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import diffuse
from own_experiments import own_conf, sweep_yaml
from PIL import Image
from sweeps import QUICK, swept

from diffuse.config.compose import own_configuration
from diffuse.config.groups import PACKAGE
from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.sweep.folder import Sweep
from diffuse.sweep.globs import expand_globs
from diffuse.sweep.plan import plan_sweep


def plan(*overrides: str) -> Sweep:
    return plan_sweep(quote_overrides(overrides, sweep=True), overrides)[0]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, a text, and two checkpoints."""
    (folder := tmp_path / "work").mkdir()
    for name in ("b.png", "a.png", "1.png", "a b, c.png", "deep/d.png", "deep/e.jpg", ".hidden.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    for name in ("one", "two"):
        shutil.copytree(PACKAGE / "tiny" / "checkpoint", folder / "models" / name, copy_function=shutil.copy)
    (folder / "models" / "README.md").write_text("no model")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("input_image=glob(*.png)", '1.png,"a b, c.png",a.png,b.png'),
        ("input_image=glob([a.png,b*])", "a.png,b.png"),
        ("input_image=glob(*.png,exclude=a*)", "1.png,b.png"),
        ("input_image=glob(**/*.jpg)", "deep/e.jpg"),
        ("input_image=glob(*)", '1.png,"a b, c.png",a.png,b.png,notes.txt'),
        ("mask_image=glob('deep/d*')", "deep/d.png"),
        ("objective.reference=glob(deep/*.png)", "deep/d.png"),
        ("model.source=glob(models/*)", "models/one,models/two"),
        ("model.vae.source=glob(models/o*)", "models/one"),
        ("scheduler=glob(euler*)", "euler,euler_ancestral"),
        ("model=glob([tiny,sdxl*],exclude=*turbo)", "sdxl,sdxl_lcm,sdxl_refiner,tiny"),
    ],
)
def test_it_is_expanded(typed: str, values: str, work: Path) -> None:
    assert expand_globs([typed, "prompt='glob of light'"]) == [
        f"{typed.partition('=')[0]}=choice({values})",
        "prompt='glob of light'",
    ]


def test_a_home_folder_is_looked_in(work: Path) -> None:
    (line,) = expand_globs(["input_image=glob('~/deep/*.jpg')"])
    assert line == f"input_image=choice({work}/deep/e.jpg)"


def test_pictures_of_it(work: Path) -> None:
    done = swept("input_image=glob(deep/*)", "seed=1", "num_inference_steps=1", "strength=1.0", cwd=work)
    files = [read_record(work / path)["request"]["input_image"] for path in done.paths]
    assert [Path(file).name for file in files] == ["d.png", "e.jpg"]


def test_it_is_the_sweep_over_what_it_finds(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_conf(tmp_path, monkeypatch, own=sweep_yaml("input_image: glob(deep/*)"))
    assert plan("input_image=glob([a.png,b.png])").identity == plan("input_image=b.png,a.png").identity
    assert plan("scheduler=glob(euler*)").identity == plan("scheduler=euler,euler_ancestral").identity
    assert plan("experiment=own").jobs == plan("model.source=glob(models/*)").jobs == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("input_image=glob(*.gif)",), "input_image=glob(*.gif): matches no file"),
        (("model.source=glob(models/*.md)",), "matches no folder"),
        (("mask_image=glob(no/*)", "input_image=a.png"), "matches no file"),
        (("scheduler=glob(nothing*)",), "matches no scheduler; there are ddim,"),
        (("experiment=glob(nothing*)",), "matches no experiment; there are "),
        (("seed=glob(*)",), "seed takes neither"),
        (("prompt_file=glob(*.txt)",), "give one file"),
        (("experiment=seeds_by_steps,prompt_matrix",), "seeds_by_steps: is a sweep itself"),
        (("experiment=glob(*)",), "fixed: is a sweep itself"),
        (("experiment=plain,strength_ladder", "seed=1"), "strength_ladder: is a sweep itself"),
        (("experiment=plain,heir",), "heir: is a sweep itself"),
        (("experiment=plain,fixed",), "fixed: is a sweep itself"),
    ],
)
def test_what_cannot_be(
    overrides: tuple[str, ...], said: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heir = "defaults:\n  - seeds_by_steps\nwidth: 72\n"
    own_conf(tmp_path, monkeypatch, plain="width: 64\n", heir=heir, fixed=sweep_yaml("seed: 3"))
    before = sorted(work.iterdir())
    done = diffuse("-m", *overrides, *QUICK, cwd=work)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert said in done.err and sorted(work.iterdir()) == before


def test_experiments_that_are_no_sweeps_are_swept_over(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_conf(tmp_path, monkeypatch, one="width: 64\nseed: 1\n", two="width: 72\nseed: 1\n")
    assert plan("experiment=one,two").jobs == plan("experiment=glob([one,two])").jobs == 2


def test_options_of_a_group_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    for name in ("oil", "ink"):
        (tmp_path / "style" / f"{name}.yaml").write_text("# @package _global_\nwidth: 64\n")
    with own_configuration(["seed=1"], str(tmp_path)):
        assert expand_globs(["+style=glob(*)"]) == ["+style=choice(ink,oil)"]
        with pytest.raises(ConfigError, match="matches no style; there are ink, oil"):
            expand_globs(["+style=glob(x*)"])
