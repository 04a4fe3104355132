"""The address of a store."""

from __future__ import annotations

from pathlib import Path

from tracked_runs import settings

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
