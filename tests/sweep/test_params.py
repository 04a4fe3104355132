"""What an experiment sets in `hydra.sweeper.params`: it is made, it belongs to the identity, and what is typed wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import diffuse
from own_experiments import own_conf, sweep_yaml
from sweeps import QUICK

from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.sweep.folder import Sweep
from diffuse.sweep.plan import plan_sweep


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "work").mkdir()
    monkeypatch.chdir(folder)
    return folder


def plan(*overrides: str) -> Sweep:
    return plan_sweep(quote_overrides(overrides, sweep=True), overrides)[0]


def requests(*arguments: str, cwd: Path) -> list[dict[str, Any]]:
    """The requests of the pictures that a command makes, without a report."""
    done = diffuse(*arguments, *QUICK, cwd=cwd)
    assert done.status == 0, done.err
    return [read_record(cwd / path)["request"] for path in done.paths]


def test_fixed_values_are_made(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = (
        "seed: 5",
        "num_inference_steps: 1,2",
        "guidance_rescale: 0.5",
        "scheduler: euler",
        "keep_unmasked: false",
        "negative_prompt: null",
        "prompt: it's a (fluffy) cat",
        "timesteps: null",
        "scheduler.timestep_spacing: linspace",
    )
    own_conf(tmp_path, monkeypatch, own=sweep_yaml(*params), other=sweep_yaml(*params, "width: 72"))
    made = requests("experiment=own", cwd=work)
    assert [(each["seed"], each["num_inference_steps"]) for each in made] == [(5, 1), (5, 2)]
    assert {each["guidance_rescale"] for each in made} == {0.5}
    assert {each["prompt"] for each in made} == {"it's a (fluffy) cat"}
    assert requests("experiment=own", "seed=6", "num_inference_steps=1", cwd=work)[0]["seed"] == 6
    own = plan("experiment=own")
    assert (own.jobs, own.seed, own.axes) == (2, None, ["num_inference_steps"])
    assert own.identity != plan("experiment=other").identity
    assert len({own.identity, *(plan("experiment=own", f"seed={seed}").identity for seed in (6, 7))}) == 3


@pytest.mark.parametrize(
    ("line", "jobs"),
    [
        ("seed: [3, 4, 5]", 3),  # a list of a field that takes one value
        ("prompt: [a cat, 'a dog, small']", 2),
        ("scheduler: [ddim, euler]", 2),
        ("timesteps: [900, 500, 100]", 1),  # one value, which is a list
        ("timesteps: [[900, 500], [900, 100]]", 2),
        ('timesteps: "[900,500],[900,100]"', 2),
        ("sigmas: [14.6, 3.9]", 1),
        ("seed: 3", 1),
    ],
)
def test_lists_and_single_values(
    line: str, jobs: int, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_conf(tmp_path, monkeypatch, own=sweep_yaml(line), none=sweep_yaml("width: 64"))
    own = plan("experiment=own")
    assert own.jobs == jobs and own.identity != plan("experiment=none").identity


def test_lists_reach_the_pictures(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_conf(tmp_path, monkeypatch, own=sweep_yaml("timesteps: [900, 100]", "seed: [3, 4]"))
    made = requests("experiment=own", cwd=work)
    assert [(each["seed"], each["timesteps"]) for each in made] == [(3, [900, 100]), (4, [900, 100])]


@pytest.mark.parametrize(
    ("typed", "jobs", "axes"),
    [
        (("seed=5",), 3, ["num_inference_steps"]),
        (("num_inference_steps=5",), 4, ["seed"]),
        (("seed=5", "num_inference_steps=5"), 1, []),
        (("seed=5,6",), 6, ["num_inference_steps", "seed"]),
        (("seed=5", "width=64,72"), 6, ["num_inference_steps", "width"]),
        (("seed=null",), 3, ["num_inference_steps"]),
    ],
)
def test_what_is_typed_is_counted(typed: tuple[str, ...], jobs: int, axes: list[str], work: Path) -> None:
    sweep = plan("experiment=seeds_by_steps", *typed)
    assert (sweep.jobs, sweep.axes) == (jobs, axes)
    assert (sweep.seed is not None) == (typed == ("seed=null",))


def test_what_is_typed_is_recorded(work: Path) -> None:
    done = diffuse(
        "experiment=seeds_by_steps", *QUICK[:-2], "report.make=false", "seed=5", "num_inference_steps=1", cwd=work
    )
    assert done.status == 0 and "1 job: 1 made" in done.err, done.err
    assert requests("experiment=seeds_by_steps", "seed=5", "num_inference_steps=1", cwd=work)[0]["seed"] == 5


def test_identities_of_earlier_versions(work: Path) -> None:
    """Those of sweeps that made the same pictures before."""
    typed = [("seeds_by_steps",), ("seeds_by_steps", "seed=5"), ("seeds_by_steps", "seed=5,6"), ("prompt_matrix",)]
    typed += [("tune_guidance", "seed=3"), ("scheduler_shootout", "scheduler=ddim")]
    found = [plan(f"experiment={name}", *more, "model.source=x").identity[:12] for name, *more in typed]
    assert found == ["05734911979e", "bb79eb251266", "1daa3d38a6eb", "4c540a8d1cf5", "ef4ced29692b", "07ab89e782f7"]


def test_a_value_that_cannot_be_read_is_one_line(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_conf(tmp_path, monkeypatch, wrong=sweep_yaml('seed: "1,"'))
    with pytest.raises(
        ConfigError, match=r"hydra\.sweeper\.params\.seed=1,: cannot be read; write its values as a list"
    ):
        plan("experiment=wrong")


@pytest.mark.parametrize("sign", ["+", "~"])
def test_a_sign_is_refused_as_where_it_is_typed(
    sign: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_conf(tmp_path, monkeypatch, twice=sweep_yaml("seed: range(1,4)", f"{sign}foo: 1,2"))
    with pytest.raises(ConfigError, match=r"foo=1,2: there is no field or group foo"):
        plan("experiment=twice")
