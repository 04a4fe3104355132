"""Tags and names that users give to runs: MLflow's own rules, checked before anything is made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import diffuse
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import path_not_unique, validate_param_and_metric_name
from sweeps import swept
from tracked_runs import make, runs

from diffuse.config.compose import compose_config
from diffuse.config.quoting import quote_overrides
from diffuse.config.run_tags import check_run_tags
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.sweep.job import Job
from diffuse.sweep.plan import plan_sweep


def is_allowed(key: str) -> bool:
    try:
        check_run_tags({key: "x"}, None)
    except ConfigError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aZ9é漢_-./: =,{}\\\n"), min_size=1, max_size=12))
def test_names_of_tags_are_those_that_mlflow_takes(key: str) -> None:
    assert is_allowed(key) == bool(validate_param_and_metric_name(key) and not path_not_unique(key) and "\n" not in key)


@pytest.mark.parametrize(
    ("overrides", "tags"),
    [
        (["tracking.tags={team: art, round: 3}"], {"team": "art", "round": 3}),
        (["tracking.tags.team=art", "tracking.tags.round=3"], {"team": "art", "round": 3}),
        (["+tracking.tags.team=art"], {"team": "art"}),
        (["tracking.tags.done=true", "tracking.tags.share=0.5"], {"done": True, "share": 0.5}),
        (["tracking.tags={a/b: 'x, y'}"], {"a/b": "x, y"}),
    ],
)
def test_ways_to_write_them(overrides: list[str], tags: dict[str, Any]) -> None:
    assert dict(compose_config(overrides).tracking.tags) == tags


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tracking.tags={a@b: 1}", "letters, digits, spaces"),
        ("tracking.tags={a//b: 1}", "plain path"),
        ("tracking.tags={/a: 1}", "plain path"),
        ("tracking.tags={diffuse.sweep: x}", "diffuse sets this tag itself"),
        ("tracking.tags={mlflow.user: x}", "diffuse sets this tag itself"),
        ("tracking.tags={a: null}", "leave a tag without a value out"),
        ("tracking.tags={a: [1,2]}", "should be a text or a number"),
        (f"tracking.tags={{{'a' * 251}: 1}}", "251 characters"),
        (f"tracking.tags={{a: {'x' * 8001}}}", "8000 characters"),
        ("tracking.run_name=", "tracking.run_name is empty"),
        (f"tracking.run_name={'x' * 251}", "251 characters"),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")], ids=["run", "sweep"])
def test_what_mlflow_would_refuse_is_one_line(override: str, said: str, sweep: tuple[str, ...], tmp_path: Path) -> None:
    done = diffuse(*sweep, override, cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_leaves_room_for_those_of_a_sweeps_runs() -> None:
    check_run_tags({}, "x" * 199, in_sweep=True)
    check_run_tags({}, "x" * 250)
    with pytest.raises(ConfigError, match=r"has 200 characters; MLflow keeps 250, .*; give at most 199"):
        check_run_tags({}, "x" * 200, in_sweep=True)
    job = Job(0, [f"prompt={'a' * 100}"])
    assert len(f"{'x' * 199} {job.run_name(['prompt'])}") <= 250


def test_the_run_in_the_store_has_them(store: Path, tmp_path: Path) -> None:
    given = (
        "tracking.run_name=first, (try) = ä",
        "tracking.tags={team: art, stage/one: 3, mlflow.note.content: hello}",
    )
    make(store, tmp_path, *given)
    (run,) = runs(store)
    assert run.info.run_name == "first, (try) = ä"
    assert {key: run.data.tags.get(key) for key in ("team", "stage/one", "mlflow.note.content")} == {
        "team": "art",
        "stage/one": "3",
        "mlflow.note.content": "hello",
    }
    assert not any(key.startswith("tracking") for key in run.data.params)


def test_all_runs_of_a_sweep_have_them(store: Path, tmp_path: Path) -> None:
    uri = f"tracking.uri=sqlite:///{store}"
    given = ("tracking=mlflow", uri, "tracking.run_name=lamps", "tracking.tags.team=art", "num_inference_steps=1")
    swept("seed=1,2", *given, cwd=tmp_path)
    found = runs(store)
    assert sorted(run.info.run_name for run in found) == ["lamps seed", "lamps seed=1", "lamps seed=2"]
    assert {run.data.tags["team"] for run in found} == {"art"}


def test_they_are_no_part_of_the_identity_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def identity(*overrides: str) -> str:
        return plan_sweep(quote_overrides(overrides, sweep=True), overrides)[0].identity

    assert identity("seed=1,2") == identity("seed=1,2", "tracking.tags.team=art", "tracking.run_name=x")


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "mlflow.db"))


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., str]:
    def git(*arguments: str) -> str:
        settings = ("-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    git("add", "prompts.txt")
    git("commit", "-q", "-m", "prompts")
    return git


def test_the_commit_of_the_users_own_repository(store: Path, tmp_path: Path, repository: Callable[..., str]) -> None:
    made = read_record(tmp_path / make(store, tmp_path).paths[0])
    commit = repository("rev-parse", "HEAD")
    assert made["user_git"] == {"commit": commit, "clean": True}  # pictures in it are under no version control
    assert (made["git"] or {}).get("commit") != commit
    (run,) = runs(store)
    assert run.data.tags["diffuse.user_commit"] == commit
    again = diffuse("reproduce", made_path := make(store, tmp_path).paths[0], cwd=tmp_path)
    assert again.status == 0, (made_path, again.err)
