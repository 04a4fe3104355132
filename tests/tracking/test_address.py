"""Addresses that can hold no runs are refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracked_runs import settings

from diffuse.errors import ConfigError
from diffuse.tracking.store import Store


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("foo://x", "foo://"),
        ("htp://host:5000", "htp://"),
        ("sqlite:/x", "can hold no runs; use sqlite:///FILE"),
        ("sqlite://x.db", "can hold no runs"),
        ("sqlite:///:memory:", "can hold no runs"),
        ("sqlite3:///x.db", "write sqlite://"),
        ("postgres://me:hunter2@host/db", "write postgresql://"),
        ("s3://bucket/runs", "s3://"),
        ("databricks-uc://x", "databricks-uc://"),
        ("http://", "names no server"),
        ("http://:5000", "names no server"),
        ("http://host:port", "names no server"),
        ("http:host", "can hold no runs"),
        ("host:5000", "can hold no runs"),
        ("databricks", ".databrickscfg cannot be read; set DATABRICKS_HOST"),
        ("databricks://work", ".databrickscfg cannot be read"),
    ],
)
def test_an_address_that_mlflow_does_not_know_is_one_line(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.uri=") as found:
        Store.from_config(settings(uri))
    assert said in str(found.value) and "\n" not in str(found.value)
    assert "hunter2" not in str(found.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://host",
        "http://me:secret@host:5000/path",
        "http://[::1]:5000",
        "postgresql+psycopg://me@host/db",
        "postgresql:///db",
        "mysql+pymysql://host/db",
        "mssql+pyodbc://host/db",
    ],
)
def test_addresses_that_may_hold_runs(uri: str) -> None:
    assert Store.from_config(settings(uri)).uri == uri


def test_databricks_with_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".databrickscfg"
    file.write_text("[DEFAULT]\nhost = https://a\ntoken = x%y\n[work]\nhost = https://b\n")
    for uri in ("databricks", "databricks://work", "databricks://work:prefix"):
        assert Store.from_config(settings(uri)).uri == uri
    with pytest.raises(ConfigError, match="has no profile play"):
        Store.from_config(settings("databricks://play"))
    file.write_text("no configuration")
    with pytest.raises(ConfigError, match="cannot be read"):
        Store.from_config(settings("databricks"))
    monkeypatch.setenv("DATABRICKS_HOST", "https://a")
    assert Store.from_config(settings("databricks")).uri == "databricks"


def test_databricks_with_the_home_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "~nosuchuser/databrickscfg")
    with pytest.raises(ConfigError, match="DATABRICKS_CONFIG_FILE=~nosuchuser/databrickscfg: there is no user"):
        Store.from_config(settings("databricks://work"))
