"""Sweeps that need no plugin of Hydra's: as Hydra runs them with this package's own, and composed half as often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command import diffuse, jobs_in
from sweeps import QUICK, swept

from diffuse.cli import hydra_main
from diffuse.config.quoting import quote_overrides
from diffuse.sweep import grid
from diffuse.sweep.launchers.plugins import register_plugins
from diffuse.sweep.plan import plan_sweep


def needs_plugins(*overrides: str) -> bool:
    register_plugins()
    _, base, lines = plan_sweep(quote_overrides(overrides, sweep=True), overrides)
    return grid.needs_plugins(base, lines)


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("guidance_scale=2,3", False),
        ("hydra.sweeper.zip=[seed,width]", False),
        ("hydra.sweeper.max_batch_size=1", False),
        ("hydra/launcher=diffuse", False),
        ("experiment=seeds_by_steps", False),
        ("scheduler=glob(dp*)", False),
        (r"prompt='\${hydra:mode} as a text'", True),
        ("hydra/launcher=basic", True),
        ("hydra/launcher=joblib", True),
        ("hydra/sweeper=optuna", True),
        ("hydra.verbose=true", True),
        ("hydra={verbose:true}", True),
        ("++hydra.sweeper.zip=null", True),
        ("prompt=${hydra:runtime.choices.scheduler}", True),
        ("+hydra.callbacks.one._target_=hydra.experimental.callback.Callback", True),
    ],
)
def test_what_needs_hydra(override: str, needed: bool) -> None:
    lines = ("seed=1,2", "width=64,128") if "zip=[" in override else ("seed=1,2",)
    assert needs_plugins(*lines, override) is needed


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=3,1", "num_inference_steps=1", "scheduler=choice(euler,ddim)", "scheduler.prediction_type=null"),
        ("seed=1,2", "num_inference_steps=2,1", "hydra.sweeper.zip=[seed,num_inference_steps]"),
        ("seed=range(0,3)", "num_inference_steps=1", "hydra.sweeper.max_batch_size=2", 'prompt="a cat, small","12"'),
        ("experiment=seeds_by_steps", "seed=1,2", "num_inference_steps=1"),
        ("seed=1,1", "num_inference_steps=1", "scheduler.eta=0.5,1", "scheduler=ddim"),
    ],
)
def test_it_is_the_sweep_that_hydra_runs(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, left, jobs, listed = [], [], [], []
    for by_hydra in (True, False):
        (folder := tmp_path / str(by_hydra)).mkdir()
        with monkeypatch.context() as patched:
            if by_hydra:
                patched.setattr(grid, "needs_plugins", lambda *_: True)
            else:
                patched.setattr(hydra_main, "main", lambda **_: pytest.fail("Hydra ran it"))
            listed.append(diffuse("-m", "--dry-run", *QUICK, *overrides, cwd=folder))
            done = swept(*overrides, cwd=folder)
        said.append((done.out, done.err.partition(" in ")[0]))
        left.append(yaml.safe_load((folder / "out" / "multirun.yaml").read_text()))
        jobs.append(
            [(each["key"], each["overrides"], each["media"][0]["pixels_sha256"]) for each in jobs_in(folder / "out")]
        )
    assert said[0] == said[1] and jobs[0] == jobs[1] and listed[0] == listed[1]
    hydras, ours = (each.pop("hydra") for each in left)
    assert left[0] == left[1]
    for each in ("sweep", "sweeper", "launcher", "callbacks", "mode"):
        assert json.dumps(hydras[each]) == json.dumps(ours[each]), each
    assert hydras["overrides"]["task"] == ours["overrides"]["task"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=1,two",),
        ("scheduler=ddim,dimm", "seed=1"),
        ("seed=1,2", "model=tiny,nothing"),
        ("hydra.sweeper.max_batch_size=0", "seed=1,2"),
        ("seed=1,2", "hydra.sweeper.max_batch_size=x"),
        ("seed=1,2", "wdith=64"),
        ("seed=1,2", "width=65"),
        ("seed=1,2", "hydra.launcher.n_jobs=2"),
        ("memory_profile=low,null", "seed=1"),
    ],
)
def test_what_is_wrong_is_said_in_the_same_words(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = diffuse("-m", *QUICK, *overrides, cwd=tmp_path)
    monkeypatch.setattr(grid, "needs_plugins", lambda *_: True)
    assert diffuse("-m", *QUICK, *overrides, cwd=tmp_path) == plain
    assert plain.status == 2 and "Traceback" not in plain.err, plain.err
