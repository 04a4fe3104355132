"""Hydra's settings that have no place here: refused by name, whether they are typed or stand in a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import SMOKE, diffuse
from sweeps import QUICK

import diffuse as library
from diffuse.config import groups
from diffuse.config.compose import own_configuration
from diffuse.config.hydra_settings import has_own_hydra, may_set_hydra, needs_hydra
from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError
from diffuse.sweep.plan import is_sweep


def refused(*arguments: str, cwd: Path) -> str:
    """The one line that the command says, which leaves nothing behind."""
    before = sorted(cwd.iterdir())
    done = diffuse(*arguments, cwd=cwd)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert sorted(cwd.iterdir()) == before
    return done.err


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.run.dir=here", "write output.dir=here"),
        ("hydra.sweep.dir=here", "write output.dir=here"),
        ("hydra.sweep.dir='a b'", "write output.dir=a b"),
        ("++hydra.run.dir=here", "write output.dir=here"),
        ("hydra.run={dir:here}", "write output.dir=here"),
        ("hydra.sweep.subdir=${hydra.job.num}", "named by its values"),
        ("hydra.job.chdir=true", "write output.dir=FOLDER"),
        ("hydra.job.chdir=True", "write output.dir=FOLDER"),
    ],
)
def test_folders_of_hydra_are_refused(override: str, said: str, sweep: tuple[str, ...], tmp_path: Path) -> None:
    line = refused(*sweep, *SMOKE[:2], "tracking=none", override, cwd=tmp_path)
    assert said in line and "diffuse: hydra." in line.replace("++", "")


@pytest.mark.parametrize(
    "override",
    [
        "hydra/launcher=joblib",
        "hydra/launcher=basic",
        "hydra.launcher.n_jobs=2",
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.zip=[seed,width]",
        "+hydra.sweeper.params.seed='1,2'",
        "hydra.sweeper.n_trials=5",
    ],
)
def test_what_is_a_sweeps_is_refused_without_one(override: str, tmp_path: Path) -> None:
    line = refused(*SMOKE, "tracking=none", override, cwd=tmp_path)
    assert f"{override}: is for a sweep" in line and "add -m" in line
    with pytest.raises(ConfigError, match="is for a sweep"):
        library.txt2img("a cat", overrides=[override])


@pytest.mark.parametrize("override", ["hydra.run.dir=.", "hydra.job.chdir=false", "hydra.sweep.subdir=."])
def test_what_says_the_same_is_taken(override: str, tmp_path: Path) -> None:
    done = diffuse("-m", *QUICK, "seed=1,2", "--dry-run", override, cwd=tmp_path)
    assert done.status == 0 and "2 jobs" in done.err, done.err


@pytest.mark.parametrize("mode", ["hydra.mode=MULTIRUN", "++hydra.mode='MULTIRUN'"])
def test_hydras_mode_is_a_sweep(mode: str, tmp_path: Path) -> None:
    assert is_sweep([mode]) and not is_sweep([mode, "hydra.mode=RUN"])
    done = diffuse(*QUICK, mode, "seed=1,2", "hydra/launcher=basic", "--dry-run", cwd=tmp_path)
    assert done.status == 0 and "2 jobs" in done.err, done.err
    assert "leave one of them out" in refused("-m", "seed=1,2", "hydra.mode=RUN", cwd=tmp_path)


def test_printing_shows_what_was_set(tmp_path: Path) -> None:
    done = diffuse("--cfg", "hydra", "--package", "hydra.run", "hydra.run.dir=here", cwd=tmp_path)
    assert done.status == 0 and "dir: here" in done.out


def copied_conf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `conf/` that holds in the place of the package's."""
    conf = folder / "conf"
    shutil.copytree(groups.conf_dir(), conf)
    for module in ("config.groups", "config.hydra_settings", "cli.hydra_main", "sweep.plan"):
        monkeypatch.setattr(f"diffuse.{module}.conf_dir", lambda: conf)
    return conf


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("hydra:", "hydra:\n  callbacks: {one: {_target_: hydra.experimental.callback.Callback}}"),
        ("  job:", "  job:\n    env_set: {A: b}"),
        ("    chdir: false", "    chdir: true"),
        ("  output_subdir: null", "  output_subdir: .hydra"),
        ("  - override hydra/job_logging: none", "  - override hydra/job_logging: default"),
        ("  - override hydra/job_logging: none", ""),
        ("  - override hydra/launcher", "  - override hydra/env: default\n  - override hydra/launcher"),
    ],
)
def test_what_somebody_adds_to_the_packages_own_file_is_left_to_hydra(
    line: str, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied_conf(tmp_path, monkeypatch) / "config.yaml"
    assert not needs_hydra(["seed=1"]) and not has_own_hydra()
    text = file.read_text()
    assert f"\n{line}" in text
    other = tmp_path / "other" / "config.yaml"
    other.parent.mkdir()
    other.write_text(text.replace(f"\n{line}", f"\n{changed}"))
    monkeypatch.setattr("diffuse.config.hydra_settings.conf_dir", lambda: other.parent)
    assert needs_hydra(["seed=1"]) and has_own_hydra()


def test_experiments_that_set_nothing_of_hydras() -> None:
    assert not may_set_hydra(["experiment=smoke"]) and not may_set_hydra(["~experiment"])
    assert may_set_hydra(["experiment=seeds_by_steps"]) and may_set_hydra(["+experiment=nothing"])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["run:", "    dir: here"], "hydra.run.dir=here"),
        (["sweep:", "    subdir: ${hydra.job.num}"], "hydra.sweep.subdir=${hydra.job.num}"),
        (["job:", "    chdir: true"], "hydra.job.chdir=true"),
    ],
)
def test_a_file_may_not_set_them_either(
    lines: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = copied_conf(tmp_path, monkeypatch)
    (conf / "experiment" / "own.yaml").write_text("\n  ".join(["# @package _global_\nhydra:", *lines]) + "\n")
    (work := tmp_path / "work").mkdir()
    assert may_set_hydra(["experiment=own"])
    assert said in refused(*SMOKE, "experiment=own", cwd=work)
    assert said in refused("-m", "experiment=own", "seed=1,2", cwd=work)


@pytest.mark.parametrize(
    ("override", "name"), [("+hydra.job.env_set.A=1", "hydra.job.env_set"), ("hydra.output_subdir=.hydra", "subdir")]
)
def test_what_a_sweep_does_for_no_job_is_refused(override: str, name: str, tmp_path: Path) -> None:
    line = refused("-m", *QUICK, "seed=1,2", override, cwd=tmp_path)
    assert name in line and "hydra/launcher=basic" in line


BY_NAME, LIST, HYDRAS = "it has fields of its own", "should be a list", "what Hydra itself says"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra=3", BY_NAME),
        ("hydra=x", BY_NAME),
        ("hydra.job=x${seed}", BY_NAME),
        ("++hydra.job=x${seed}", BY_NAME),
        ("hydra.job=${output}", BY_NAME),
        ("hydra.job=3", BY_NAME),
        ("hydra.job.config=x${seed}", BY_NAME),
        ("hydra.job.config.override_dirname=x${seed}", BY_NAME),
        ("hydra.job.env_set=x${seed}", BY_NAME),
        ("hydra.job.env_copy=x${seed}", LIST),
        ("hydra.job={env_copy: x}", LIST),
        ("hydra.callbacks=x${seed}", BY_NAME),
        ("hydra.run=x${seed}", BY_NAME),
        ("hydra.sweep=[1]", BY_NAME),
        ("hydra.help=${output}", BY_NAME),
        ("hydra.job_logging=${output}", BY_NAME),
        ("hydra.hydra_logging=x", BY_NAME),
        ("hydra.sweeper=x${seed}", BY_NAME),
        ("hydra.sweeper=null", BY_NAME),
        ("hydra.launcher=3", BY_NAME),
        ("hydra.launcher=null", BY_NAME),
        ("hydra.sweeper.params=x${seed}", BY_NAME),
        ("+hydra.sweeper.params=3", BY_NAME),
        ("hydra.runtime=x${seed}", HYDRAS),
        ("hydra.runtime.choices=x${seed}", HYDRAS),
        ("hydra.overrides=x${seed}", HYDRAS),
        ("hydra.overrides.task=[]", HYDRAS),
        ("hydra.verbose=3", "the names of loggers"),
        ("hydra.verbose=null", "the names of loggers"),
        ("hydra.verbose=${output}", "the names of loggers"),
        ("hydra.launcher._target_=x", "hydra/launcher=NAME"),
        ("hydra.sweeper._target_=x", "hydra/sweeper=NAME"),
    ],
)
def test_a_part_of_hydra_takes_what_it_is_made_of(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        quote_overrides([override])
    message = str(caught.value)
    assert message.startswith(override) and said in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "override",
    [
        "hydra.verbose=true",
        "hydra.verbose=[a,b]",
        "hydra.job.name=x${seed}",
        "hydra.job_logging=${hydra.hydra_logging}",
        "+hydra.job.env_set.A=x${seed}",
        "hydra.sweeper.params=null",
        "hydra.job.env_copy=[HOME]",
        "hydra.launcher._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    ],
)
def test_what_a_part_is_made_of_is_taken(override: str) -> None:
    assert quote_overrides([override]) == [override]


@pytest.mark.parametrize("command", [(), ("-m",), ("--dry-run",), ("plan",), ("--cfg", "job")], ids=" ".join)
def test_every_command_says_of_a_part_what_it_is_made_of(command: tuple[str, ...], tmp_path: Path) -> None:
    assert f"diffuse: hydra.job=x${{seed}}: {BY_NAME}" in refused(*command, "hydra.job=x${seed}", cwd=tmp_path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["job: x${seed}"], "mine.yaml:3: hydra.job=x${seed}: it has"),
        (["callbacks: x"], "mine.yaml:3: hydra.callbacks=x: it has"),
        (["job:", "    env_copy: x"], "mine.yaml:4: hydra.job.env_copy=x: should be a list"),
        (["verbose: 3"], "mine.yaml:3: hydra.verbose=3: should be true"),
        (["sweeper: [1]"], "mine.yaml:3: hydra.sweeper: it has"),
        (["runtime:", "    cwd: x"], "mine.yaml:3: hydra.runtime: is what"),
    ],
)
def test_a_file_says_of_a_part_what_it_is_made_of(lines: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "\n  ".join(["# @package _global_\nhydra:", *lines])
    (tmp_path / "experiment" / "mine.yaml").write_text(f"{text}\n")
    with pytest.raises(ConfigError) as caught, own_configuration(["experiment=mine"], str(tmp_path)):
        pass
    assert said in str(caught.value)
