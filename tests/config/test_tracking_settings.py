"""MLflow's environment variables hold where `tracking.*` is not given, in every command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from command import SMOKE, Done, diffuse
from sweeps import swept
from tracked_runs import client, runs, settings, spooled
from tracking_servers import unused_port

from diffuse.config.compose import compose_config
from diffuse.config.tracking_settings import VARIABLES, tracking_settings
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.schema import TrackingConfig
from diffuse.tracking import mlflow_store
from diffuse.tracking.store import Store

NAME, NUMBER, RUN, URI = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME", "MLFLOW_TRACKING_URI"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable but those that a test sets."""
    for variables in VARIABLES.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def elsewhere(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that only the environment names, away from where the commands run."""
    (tmp_path / "elsewhere").mkdir()
    file = Path(shutil.copy(empty, tmp_path / "elsewhere" / "mlflow.db"))
    monkeypatch.setenv(URI, f"sqlite:///{file}")
    return file


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ({}, {}, ("sqlite:///outputs/mlflow.db", "diffuse", None, None)),
        ({}, {URI: "http://a:1", NAME: "b", RUN: "c"}, ("http://a:1", "b", None, "c")),
        ({}, {NUMBER: "7"}, ("sqlite:///outputs/mlflow.db", None, "7", None)),
        ({}, {NUMBER: "7", NAME: "b"}, ("sqlite:///outputs/mlflow.db", "b", "7", None)),
        ({"experiment": "x"}, {NUMBER: "7", NAME: "b"}, ("sqlite:///outputs/mlflow.db", "x", None, None)),
        ({"uri": "http://x:1", "run_name": "y"}, {URI: "http://a:1", RUN: "c"}, ("http://x:1", "diffuse", None, "y")),
        ({}, {URI: "", NAME: " ", NUMBER: "", RUN: ""}, ("sqlite:///outputs/mlflow.db", "diffuse", None, None)),
        ({}, {URI: " http://a:1\n"}, ("http://a:1", "diffuse", None, None)),
    ],
)
def test_the_configuration_wins_then_the_environment_then_a_default(
    given: dict[str, str], variables: dict[str, str], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    composed = compose_config([f"tracking.{name}={value}" for name, value in given.items()]).tracking
    for cfg in (TrackingConfig(name="mlflow", **given), composed):
        found = tracking_settings(cfg)
        assert (found.uri, found.experiment, found.experiment_id, found.run_name) == expected


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (NAME, "x" * 501, f"{NAME}: has 501 characters"),
        (RUN, "x" * 251, f"{RUN}: has 251 characters"),
        (URI, "foo://x", f"{URI}=foo://x is of a kind that MLflow does not know"),
        (URI, "./mlruns", f"{URI}=./mlruns can hold no runs"),
        (URI, "databricks", f"{URI}=databricks needs to log in"),
        (URI, "http://me:hunter2@", f"{URI}=http://***@ names no server"),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")], ids=["run", "sweep"])
def test_what_mlflow_would_refuse_is_one_line(
    variable: str, value: str, said: str, sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)
    done = diffuse(*sweep, *SMOKE[:1], "hardware=cpu", cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert said in done.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["tracking.experiment=", f"tracking.experiment={'x' * 501}"])
def test_a_name_of_an_experiment_that_mlflow_would_refuse_is_one_line(value: str, tmp_path: Path) -> None:
    done = diffuse(*SMOKE, value, cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert "tracking.experiment" in done.err and list(tmp_path.iterdir()) == []


def test_nothing_of_it_matters_where_nothing_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI, "foo://x")
    monkeypatch.setenv(RUN, "x" * 300)
    done = diffuse(*SMOKE, "tracking=none", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "tracking" not in read_record(tmp_path / done.paths[0])


def made(*arguments: Any, cwd: Path) -> tuple[Done, dict[str, Any]]:
    done = diffuse(*SMOKE, *arguments, cwd=cwd)
    assert done.status == 0 and "warning" not in done.err, done.err
    return done, read_record(cwd / done.paths[0])


def test_every_command_obeys_and_the_record_says_which_won(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(NAME, "lamps")
    monkeypatch.setenv(RUN, "first try")
    cwd = tmp_path / "here"
    cwd.mkdir()
    _, record = made(cwd=cwd)
    (run,) = runs(elsewhere, "lamps")
    assert run.info.run_name == "first try"
    assert record["tracking"] == {
        "uri": f"environment: {URI}",
        "experiment": f"environment: {NAME}",
        "run_name": f"environment: {RUN}",
    }
    kept = record["config"]["tracking"]
    assert (kept["uri"], kept["experiment"], kept["run_name"]) == (f"sqlite:///{elsewhere}", "lamps", "first try")

    _, record = made("tracking.experiment=vases", "tracking.run_name=second", "output.dir=b", cwd=cwd)
    (run,) = runs(elsewhere, "vases")
    assert run.info.run_name == "second"
    assert record["tracking"]["uri"] == f"environment: {URI}"
    assert record["tracking"]["experiment"] == "configuration: tracking.experiment"
    assert record["tracking"]["run_name"] == "configuration: tracking.run_name"

    swept("tracking=mlflow", "seed=1,2", "num_inference_steps=1", cwd=cwd)
    names = sorted(run.info.run_name for run in runs(elsewhere, "lamps"))
    assert names == ["first try", "first try seed", "first try seed=1", "first try seed=2"]

    reproduced = diffuse("reproduce", run.info.run_id, "output.dir=again", cwd=cwd)
    assert reproduced.status == 0, reproduced.err
    assert len(runs(elsewhere, "lamps")) == 5

    compared = diffuse("compare", "lamps", "--out", "report", cwd=cwd)
    assert compared.status == 0, compared.err

    spooled(settings(elsewhere), Path(cwd / made("output.dir=c", cwd=cwd)[0].paths[0]))
    synced = diffuse("sync", cwd=cwd)
    assert (synced.status, synced.err) == (0, f"1 run delivered to sqlite:///{elsewhere}\n")
    assert list(cwd.rglob("mlflow.db")) == []

    assert f"({URI})" in diffuse("doctor", cwd=cwd).out
    monkeypatch.setenv(URI, f"http://127.0.0.1:{unused_port()}")
    assert diffuse("ui", cwd=cwd).out.startswith("http://127.0.0.1:")


def test_an_experiment_known_by_its_id(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = client(elsewhere).create_experiment("vases", artifact_location=(tmp_path / "files").as_uri())
    monkeypatch.setenv(NUMBER, number)
    _, record = made(cwd=tmp_path)
    assert len(runs(elsewhere, "vases")) == 1
    assert record["tracking"]["experiment"] == f"environment: {NUMBER}={number}"
    connection = mlflow_store.Connection(Store.from_config(settings(elsewhere)))
    monkeypatch.setenv(NAME, "lamps")
    with pytest.raises(mlflow_store.UnusableExperiment, match=f"the id {number} is vases, and not lamps"):
        connection.experiment(Store.from_config(settings(elsewhere)))
    monkeypatch.setenv(NAME, "vases")
    store = Store.from_config(settings(elsewhere))
    assert connection.experiment(store) == number and Store.from_json(store.as_json()) == store
    monkeypatch.setenv(NUMBER, "77")
    with pytest.raises(mlflow_store.UnusableExperiment, match="no experiment with the id 77"):
        connection.experiment(Store.from_config(settings(elsewhere)))


def test_a_group_of_the_users_own_is_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI, "http://a:1")
    assert Store.from_config(compose_config(["tracking.uri=http://b:1"]).tracking).uri == "http://b:1"
    with pytest.raises(ConfigError, match=r"tracking.uri=foo://b is of a kind"):
        Store.from_config(compose_config(["tracking.uri=foo://b"]).tracking)
