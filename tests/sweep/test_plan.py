"""Which sweep a command asks for, and which it cannot be."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from command import diffuse
from PIL import Image
from sweeps import QUICK, swept

from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.sweep.folder import Sweep
from diffuse.sweep.plan import is_sweep, plan_sweep

CALLBACK = "hydra.experimental.callbacks.LogJobReturnCallback"


def plan(*overrides: str, **options: Any) -> Sweep:
    return plan_sweep(quote_overrides(overrides, sweep=True), overrides, **options)[0]


def test_a_sweep_is_known_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = plan("seed=range(0,3)", "num_inference_steps=5,10", "width=64")
    assert one.folder == Path("outputs/sweeps") / one.identity[:12] and one.jobs == 6
    same = plan("num_inference_steps=10,5", "width=64", "seed=0,1,2", "tracking=none", "report.make=false")
    assert same.identity == one.identity
    others = [
        plan("seed=range(0,4)", "num_inference_steps=5,10", "width=64"),
        plan("seed=range(0,3)", "num_inference_steps=5,10", "width=72"),
        plan("seed=range(0,3)", "guidance_scale=5,10", "width=64"),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 4


def test_a_drawn_seed_stays(tmp_path: Path) -> None:
    first = swept("num_inference_steps=1,2", cwd=tmp_path)
    seeds = {read_record(tmp_path / path)["request"]["seed"] for path in first.paths}
    assert len(seeds) == 1
    assert swept("num_inference_steps=1,2", cwd=tmp_path).paths == first.paths
    assert len(swept("num_inference_steps=1,2", "width=72", cwd=tmp_path).paths) == 2
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["seed"] not in seeds


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("seed=range(0,0)",), ("seed=range(0,0)", "is empty")),
        (("seed=range(0,5,0)",), ("never ends",)),
        (("seed=range(0,10000)", "guidance_scale=range(1,2,0.001)"), ("10,000,000 jobs", "--yes")),
        (("seed=1,2", "report.sheets=true,false"), ("report.sheets=true,false", "the same for all jobs")),
        (("seed=1,2", "tracking=none,mlflow"), ("tracking=none,mlflow", "the same for all jobs")),
        (("guidance_scale=interval(1,2)",), ("guidance_scale", "has no steps")),
        (("prompt=choice(a,b)", "prompt_file=x"), ("prompt_file", "leave one of them out")),
        (("seed=${hydra:job.num}", "width=64,72"), ("seed=${hydra:job.num}", "has no job.num", "as ${FIELD}")),
        (("seed=1,2", f"+hydra.callbacks.x._target_={CALLBACK}"), ("LogJobReturnCallback.on_job_end", "=basic")),
    ],
)
def test_a_sweep_that_cannot_be(overrides: tuple[str, ...], said: tuple[str, ...], tmp_path: Path) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = diffuse("-m", *overrides, cwd=tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 256 << 10  # KiB: no list of jobs has been made
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert all(text in done.err for text in said), done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", ["y", ""])
def test_many_jobs_are_asked_about(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: f"{answer}\n", raising=False)
    many = ("seed=range(0,20000)",)
    if answer:
        assert plan(*many).jobs == 20000
    else:
        with pytest.raises(ConfigError, match="nothing was made"):
            plan(*many)
    assert "20,000 jobs" in capsys.readouterr().err
    assert plan(*many, yes=True).jobs == 20000


def test_a_file_of_prompts_is_an_axis(tmp_path: Path, made: list[Any]) -> None:
    texts = ["a cat, (black) = ${hydra:job.num}", 'a "dog"\\', "null"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    done = swept("prompt_file=prompts.txt", "seed=1,2", "num_inference_steps=1", cwd=tmp_path)
    records = [read_record(tmp_path / path) for path in done.paths]
    assert [(each["request"]["seed"], each["request"]["prompt"]) for each in records] == [
        (seed, text) for seed in (1, 2) for text in texts
    ]
    assert [len(batch) for batch in made] == [2, 2, 2]
    again = diffuse(*QUICK, *records[0]["overrides"], cwd=tmp_path)
    assert again.status == 0 and read_record(tmp_path / again.paths[0])["request"]["prompt"] == texts[0]


@pytest.mark.parametrize(
    ("name", "jobs"),
    [("seeds_by_steps", 12), ("scheduler_shootout", 24), ("prompt_matrix", 12), ("strength_ladder", 10)],
)
def test_ready_made_sweeps(name: str, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sweeps by themselves, and what is typed goes before what they say."""
    monkeypatch.chdir(tmp_path)
    assert is_sweep([f"experiment={name}"]) and plan(f"experiment={name}").jobs == jobs
    assert plan(f"experiment={name}").name == name
    Image.new("RGB", (64, 64)).save("in.png")
    fewer = {"strength_ladder": ("input_image=in.png", "strength=0.6,1.0", "seed=0")}
    axes = fewer.get(name, ("seed=0", "num_inference_steps=1,2", "scheduler=ddim", "prompt=choice(a,b)"))
    done = diffuse(f"experiment={name}", *QUICK, *axes, cwd=tmp_path)
    assert done.status == 0 and len(done.paths) == (2 if name in fewer else 4), done.err
