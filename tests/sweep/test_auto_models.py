"""`model=auto` in a sweep: over several sources, and beside other models, which keep their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import diffuse
from sweeps import QUICK, swept

from diffuse.config.groups import PACKAGE
from diffuse.config.quoting import quote_overrides
from diffuse.media.load import read_record
from diffuse.sweep.auto_models import resolve_swept_models
from diffuse.sweep.folder import Sweep
from diffuse.sweep.plan import plan_sweep

TINY = PACKAGE / "tiny" / "checkpoint"
ZIP = "hydra.sweeper.zip"


def plan(*overrides: str) -> Sweep:
    lines = resolve_swept_models(overrides)
    return plan_sweep(quote_overrides(lines, sweep=True), lines)[0]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two checkpoints of one family, and what says that it is one of another."""
    for name in ("a", "b"):
        shutil.copytree(TINY, tmp_path / name, copy_function=shutil.copy)
    (tmp_path / "xl").mkdir()
    (tmp_path / "xl" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "resolved"),
    [
        (["model=auto", "model.source=a,b"], ["model=sd21", "model.source=a,b"]),
        (["model=auto", "model.source=glob([a,b])"], ["model=sd21", "model.source=glob([a,b])"]),
        (["model=auto", "model.source=a", "seed=1,2"], ["model=sd21", "model.source=a", "seed=1,2"]),
        (["model=tiny,sd15", "seed=1,2"], ["model=tiny,sd15", "seed=1,2"]),
        (
            ["model.source=a,xl,b", "model=auto"],
            ["model.source=choice(a,xl,b)", "model=choice(sd21,sdxl,sd21)", f"{ZIP}=[[model.source,model]]"],
        ),
        (
            ["model=tiny,auto", "model.source=a"],
            ["model=choice(tiny,sd21)", "model.source=choice(${diffuse_tiny:},a)", f"{ZIP}=[[model.source,model]]"],
        ),
        (
            ["model=auto,sdxl_turbo", "model.source=a,'b'"],
            [
                "model=choice(sd21,sd21,sdxl_turbo)",
                "model.source=choice(a,b,stabilityai/sdxl-turbo)",
                f"{ZIP}=[[model.source,model]]",
            ],
        ),
        (
            ["model=auto", "model.source=a,xl", "seed=1,2", f"{ZIP}=[seed,model.source]"],
            ["model=choice(sd21,sdxl)", "model.source=choice(a,xl)", "seed=1,2", f"{ZIP}=[[seed,model.source,model]]"],
        ),
        (
            ["model=auto,tiny", "model.source=xl,a", f"{ZIP}=[model,model.source]"],
            ["model=choice(sdxl,tiny)", "model.source=choice(xl,a)", f"{ZIP}=[[model,model.source]]"],
        ),
    ],
)
def test_each_source_goes_with_what_it_is(typed: list[str], resolved: list[str], work: Path) -> None:
    assert resolve_swept_models(typed) == resolved


def test_jobs_of_several_sources(work: Path) -> None:
    assert plan("model=auto", "model.source=a,b").identity == plan("model=sd21", "model.source=b,a").identity
    assert plan("model=auto", "model.source=a,xl", "seed=1,2").jobs == 4
    assert plan("model=tiny,auto", "model.source=a,xl", "seed=1,2,3").jobs == 9
    assert plan("experiment=seeds_by_steps", "model=tiny,auto", "model.source=a").jobs == 24


def test_pictures_of_several_sources(work: Path) -> None:
    quick = ("seed=1", "num_inference_steps=1", "width=64", "height=64", "prompt=a cactus")
    done = swept("model=auto", "model.source=a,b", *quick, cwd=work)
    models = [read_record(work / path)["config"]["model"] for path in done.paths]
    assert [(model["name"], model["source"]) for model in models] == [("sd21", "a"), ("sd21", "b")]
    done = swept("model=tiny,auto", "model.source=a", *quick, cwd=work)
    models = [read_record(work / path)["config"]["model"] for path in done.paths]
    assert [(model["name"], model["source"]) for model in models] == [("tiny", str(TINY)), ("sd21", "a")]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=auto,tiny",), "add model.source=FOLDER"),
        (("model=glob(*)",), "add model.source=FOLDER"),
        (("model=auto", "model.source=a,no"), "no: is neither a folder"),
        (("model=auto", "model.source=glob(no*)"), "matches no folder"),
        (("model=auto,tiny", "model.source=a", "hydra/sweeper=optuna"), "hydra/sweeper=basic"),
        (("model=auto,tiny", "model.source=a", "seed=1,2", f"{ZIP}=[model,seed]"), "name model.source in its place"),
    ],
)
def test_what_cannot_be(overrides: tuple[str, ...], said: str, work: Path) -> None:
    done = diffuse("-m", *overrides, *QUICK, cwd=work)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert said in done.err
