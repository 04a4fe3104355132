"""The address of a store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tracked_runs import settings

from diffuse.errors import ConfigError
from diffuse.schema import TrackingConfig
from diffuse.tracking.mlflow_store import Connection
from diffuse.tracking.store import Store


def test_the_address_of_a_file_is_absolute_and_artifacts_and_journal_lie_beside(tmp_path: Path) -> None:
    store = Store.from_config(settings(tmp_path / "x" / ".." / "mlflow.db"))
    assert store.file == tmp_path / "mlflow.db" and store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifacts == (tmp_path / "mlartifacts").as_uri()
    assert store.journal == tmp_path / "mlflow-pending"
    assert not store.is_server
    assert Store.from_json(store.as_json()) == store


def test_a_server_has_its_own_artifacts_and_its_password_is_not_shown() -> None:
    store = Store.from_config(settings("http://name:secret@host:5000"))
    assert (store.artifacts, store.file, store.is_server) == (None, None, True)
    assert "secret" in store.uri and "secret" not in store.public_uri
    assert store.sync_command == "diffuse sync"


@pytest.mark.parametrize(
    ("uri", "fields", "said"),
    [
        ("sqlite:///{}/folder", {}, "folder: is a folder; give a file"),
        ("sqlite:////dev/null", {}, "/dev/null: is no file"),
        ("sqlite:///{}/file/mlflow.db", {}, "file is a file; give a folder"),
        ("sqlite:///{}/mlflow.db", {"journal": "{}/file"}, "tracking.journal=.*file is a file; give a folder"),
        ("http://host:5000", {"journal": "{}/file/pending"}, "tracking.journal=.*file is a file; give a folder"),
        ("sqlite:///{}/mlflow.db", {"artifact_location": "{}/file"}, "tracking.artifact_location=.* is a file"),
    ],
)
def test_a_place_that_is_taken_is_refused_at_once(uri: str, fields: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    given = {name: value.format(tmp_path) for name, value in fields.items()}
    with pytest.raises(ConfigError, match=said):
        Store.from_config(TrackingConfig(name="mlflow", uri=uri.format(tmp_path), **given))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_place_with_a_mark_of_addresses(empty: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "p%20q").mkdir()
    store = Store.from_config(settings(Path(shutil.copy(empty, folder / "mlflow.db"))))
    connection = Connection(store)
    run = connection.create(connection.experiment(store), "run", 0, {})
    (files := tmp_path / "files").mkdir()
    (files / "a.txt").write_text("a")
    connection.log_folder(run, files)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("p")] == ["p%20q"]
    assert len(list(folder.glob("mlartifacts/**/a.txt"))) == 1
