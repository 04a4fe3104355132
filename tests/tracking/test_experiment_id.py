"""An experiment's id that cannot be is refused before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import SMOKE, diffuse
from tracked_runs import client, settings

from diffuse import tracking
from diffuse.errors import ConfigError
from diffuse.tracking.experiment_id import check_experiment_id
from diffuse.tracking.store import Store

NAME, NUMBER = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (NAME, NUMBER, "MLFLOW_TRACKING_URI", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture
def numbers(store: Path) -> dict[str, str]:
    """The ids of an experiment that takes runs, and of one that is deleted."""
    made = {name: client(store).create_experiment(name) for name in ("vases", "gone")}
    client(store).delete_experiment(made["gone"])
    return made


def refused(store: Path | str) -> str:
    with pytest.raises(ConfigError) as error:
        tracking.open_tracker(settings(store))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_id_that_takes_no_runs(store: Path, numbers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("77", "9" * 18):
        monkeypatch.setenv(NUMBER, number)
        assert refused(store).startswith(f"{NUMBER}={number}: there is no experiment with this id in sqlite:///{store}")
    for number in ("vases", "1x", "-1", "1.0", "²"):
        monkeypatch.setenv(NUMBER, number)
        assert f"{NUMBER}={number}: an id of MLflow's experiments is a number" in refused(store)
        assert "is a number" in refused("postgresql://127.0.0.1:9/x")
    monkeypatch.setenv(NUMBER, numbers["gone"])
    assert "the experiment gone is deleted; restore it, or give" in refused(store)
    monkeypatch.setenv(NUMBER, numbers["vases"])
    monkeypatch.setenv(NAME, "lamps")
    assert f"is the experiment vases, and not {NAME}=lamps" in refused(store)
    assert "tracking.experiment=NAME" in refused(store.parent / "new.db")
    assert not (store.parent / "new.db").exists()


def test_an_id_that_takes_runs(store: Path, numbers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NUMBER, numbers["vases"])
    check_experiment_id(Store.from_config(settings(store)))
    monkeypatch.setenv(NAME, "vases")
    check_experiment_id(Store.from_config(settings(store)))
    monkeypatch.setenv(NAME, "lamps")
    check_experiment_id(Store.from_config(settings(store, experiment="lamps")))  # the configuration wins
    monkeypatch.delenv(NAME)
    monkeypatch.setenv(NUMBER, "0")  # MLflow's own
    check_experiment_id(Store.from_config(settings(store)))
    check_experiment_id(Store.from_config(settings(store.parent / "new.db")))
    monkeypatch.setenv(NUMBER, "77")
    check_experiment_id(Store.from_config(settings("http://127.0.0.1:9")))  # which is not asked
    (store.parent / "text.db").write_text("no database")
    check_experiment_id(Store.from_config(settings(store.parent / "text.db")))  # opening it says what is wrong


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_the_command_refuses_it_before_anything_is_made(
    sweep: tuple[str, ...], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NUMBER, "77")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    done = diffuse(*SMOKE, "output.dir=out", *sweep, cwd=store.parent)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert done.err.startswith(f"diffuse: {NUMBER}=77: there is no experiment with this id")
    assert not (store.parent / "out").exists()
