"""Checks `MLFLOW_EXPERIMENT_ID` before anything is made, where that needs no MLflow and no network."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from diffuse.errors import ConfigError
from diffuse.tracking.store import Store

_VARIABLE = "MLFLOW_EXPERIMENT_ID"
_FIRST = ("0", "Default", "active")  # of a store that is new
_REMEDY = "give the id of one that takes runs, or its name as tracking.experiment=NAME instead"
_SECONDS = 1.0  # to wait for a writer


def check_experiment_id(store: Store) -> None:
    """Raises ConfigError where the experiment that is given by its id takes no runs: it is not there, or deleted, or of
    another name than the one that is given too.

    An SQLite file is asked. What a database or a server has shows when the first run is delivered.
    """
    number = store.experiment_id
    if number is None or store.is_server or store.uri.startswith("databricks"):
        return
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"{_VARIABLE}={number}: an id of MLflow's experiments is a number; {_REMEDY}")
    if store.file is None:
        return
    found = _FIRST if number == _FIRST[0] else None
    if store.file.exists() and store.file.stat().st_size:
        try:
            with closing(sqlite3.connect(f"{store.file.as_uri()}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
                query = "select experiment_id, name, lifecycle_stage from experiments where experiment_id = ?"
                found = connection.execute(query, (int(number),)).fetchone()
        except (sqlite3.Error, OverflowError):  # MLflow says better what is wrong
            return
    if found is None:
        raise ConfigError(f"{_VARIABLE}={number}: there is no experiment with this id in {store.public_uri}; {_REMEDY}")
    _, name, stage = found
    if store.experiment is not None and name != store.experiment:
        raise ConfigError(
            f"{_VARIABLE}={number}: is the experiment {name}, and not MLFLOW_EXPERIMENT_NAME={store.experiment}; leave "
            "one of them out"
        )
    if stage == "deleted":
        raise ConfigError(f"{_VARIABLE}={number}: the experiment {name} is deleted; restore it, or {_REMEDY}")
