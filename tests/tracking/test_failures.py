"""Errors of a store, told apart."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE

from diffuse.tracking import failures


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ImportError("no psycopg", name="psycopg2"), "pip install 'diffuse[postgres]'"),
        (ImportError("no mlflow", name="mlflow"), "set tracking=none"),
        (ConnectionError("refused"), "the server does not answer"),
        (ValueError("\n first \nsecond"), " first "),
        (KeyError(), "KeyError"),
        (ValueError("http://name:hunter2@host/"), "host"),
    ],
)
def test_an_error_becomes_one_line(error: Exception, line: str) -> None:
    assert line in failures.error_line(error)
    assert "hunter2" not in failures.error_line(error)


@pytest.mark.parametrize("error", [OSError("full"), MlflowException("no", error_code=PERMISSION_DENIED), ValueError()])
def test_what_helps_names_the_command_for_the_journal(error: Exception) -> None:
    command = "diffuse sync tracking.journal=elsewhere"
    assert command in failures.remedy(error, command)


def test_errors_of_mlflow_are_told_apart() -> None:
    unavailable = MlflowException("locked", error_code=TEMPORARILY_UNAVAILABLE)
    refused = MlflowException("too long", error_code=INVALID_PARAMETER_VALUE)
    lost = MlflowException("lost", error_code=INVALID_PARAMETER_VALUE)
    lost.__cause__ = ConnectionError()
    found = [(failures.is_unavailable(error), failures.is_refusal(error)) for error in (unavailable, refused, lost)]
    assert found == [(True, False), (False, True), (True, False)]
