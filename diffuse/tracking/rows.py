"""New runs that have ended already, as rows of an SQLite store.

MLflow's own calls make fifty statements for one such run, which takes longer than a small picture. Here ten are enough
for any number of runs. They leave the rows that the calls would leave, in the tables as MLflow declares them, and the
tests compare the two; whatever is unusual is refused, and left to the calls.
"""

from __future__ import annotations

import math
import posixpath
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from diffuse.tracking import values
from diffuse.tracking.values import Metric


class Ended(NamedTuple):
    """A run that is not in the store, and will not change any more."""

    name: str
    status: str
    start_time: int  # milliseconds, as all times
    end_time: int
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    metrics: Sequence[Metric]
    weights: Mapping[str, Any] | None


def known(connection: Any, experiment: str, key: str, names: Iterable[str]) -> set[str]:
    """Those of `names` that a run has in its tag `key`, over an SQLAlchemy connection."""
    from mlflow.store.tracking.dbmodels import models

    tags, runs = models.SqlTag.__table__, models.SqlRun.__table__
    asked = tags.join(runs).select().with_only_columns(tags.c.value)
    asked = asked.where(tags.c.key == key, tags.c.value.in_(list(names)))
    asked = asked.where(runs.c.experiment_id == int(experiment), runs.c.lifecycle_stage == "active")
    return set(connection.execute(asked).scalars())


def insert(connection: Any, experiment: str, runs: Sequence[Ended]) -> list[tuple[str, str]]:
    """Adds runs over an SQLAlchemy connection, and gives the id and the artifact URI of each.

    Raises ValueError for what MLflow would not take, and what SQLAlchemy raises.
    """
    from mlflow.store.tracking.dbmodels import models
    from mlflow.utils.uri import append_to_uri_path
    from sqlalchemy import select

    number = int(experiment)
    about = models.SqlExperiment
    asked: Any = select(about.artifact_location, about.lifecycle_stage).where(about.experiment_id == number)
    location, stage = connection.execute(asked).one()
    if stage != "active":
        raise ValueError(f"the experiment {experiment} is {stage}")
    ids = [uuid.uuid4().hex for _ in runs]
    places = [append_to_uri_path(location, run_id, "artifacts") for run_id in ids]
    of = dict(zip(ids, runs, strict=True))
    tags = [
        _pair(run_id, *pair)
        for run_id, run in of.items()
        for pair in values.tags({"mlflow.runName": run.name, **run.tags}).items()
    ]
    params = [_pair(run_id, *pair) for run_id, run in of.items() for pair in values.params(run.params).items()]
    points = [_point(run_id, *metric) for run_id, run in of.items() for metric in values.metrics(run.metrics)]
    if strange := [row["key"] for row in (*tags, *params, *points) if not _is_plain(row["key"])]:
        raise ValueError(f"{strange[0]} is no name that MLflow takes")
    tables = [
        (models.SqlRun, [_run(number, run_id, place, of[run_id]) for run_id, place in zip(ids, places, strict=True)]),
        (models.SqlTag, tags),
        (models.SqlParam, params),
        (models.SqlMetric, list({tuple(point.values()): point for point in points}.values())),
        (models.SqlLatestMetric, _latest(points)),
        *_inputs(connection, models, number, of),
    ]
    for table, rows in tables:
        if rows:
            connection.execute(table.__table__.insert(), rows)
    return list(zip(ids, places, strict=True))


@lru_cache(4096)
def _is_plain(name: str) -> bool:
    """MLflow takes names as paths of files, of which each file has one."""
    return posixpath.normpath(name) == name and not name.startswith((".", "/"))


def _run(experiment: int, run_id: str, place: str, run: Ended) -> dict[str, Any]:
    return {
        "run_uuid": run_id,
        "experiment_id": experiment,
        "name": values.text(run.name),
        "artifact_uri": place,
        "source_type": "UNKNOWN",  # what it is, a tag says
        "source_name": "",
        "source_version": "",
        "entry_point_name": "",
        "user_id": run.tags.get("mlflow.user", "unknown"),
        "status": run.status,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "lifecycle_stage": "active",
    }


def _pair(run_id: str, key: str, value: str) -> dict[str, Any]:
    """A parameter or a tag."""
    return {"run_uuid": run_id, "key": key, "value": value}


def _point(run_id: str, key: str, value: float, time: int, step: int) -> dict[str, Any]:
    """A metric. A database has no NaN, and no infinity."""
    missing = math.isnan(value)
    stored = 0.0 if missing else max(-sys.float_info.max, min(value, sys.float_info.max))
    return {"run_uuid": run_id, "key": key, "value": stored, "timestamp": time, "step": step, "is_nan": missing}


def _latest(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each metric of each run the last value, which the page shows."""

    def age(point: dict[str, Any]) -> tuple[int, int, float]:
        return point["step"], point["timestamp"], point["value"]

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for point in points:
        known = found.setdefault((point["run_uuid"], point["key"]), point)
        if age(point) > age(known):
            found[point["run_uuid"], point["key"]] = point
    return list(found.values())


def _inputs(
    connection: Any, models: Any, experiment: int, runs: Mapping[str, Ended]
) -> list[tuple[Any, list[dict[str, Any]]]]:
    """The datasets of the runs, those of them that the store has not, and which run read which."""
    from sqlalchemy import select

    about = models.SqlDataset
    used = {run_id: values.dataset(run.weights) for run_id, run in runs.items() if run.weights}
    asked = select(about.name, about.digest, about.dataset_uuid).where(
        about.experiment_id == experiment, about.name.in_({each.dataset.name for each in used.values()})
    )
    known = {(name, digest): found for name, digest, found in connection.execute(asked)}
    datasets, edges, tags = [], [], []
    for run_id, each in used.items():
        key = each.dataset.name, each.dataset.digest
        if key not in known:
            known[key] = uuid.uuid4().hex
            source = {"dataset_source_type": each.dataset.source_type, "dataset_source": each.dataset.source}
            row = {"dataset_uuid": known[key], "experiment_id": experiment, "name": key[0], "digest": key[1]}
            datasets.append(row | source)
        edge = uuid.uuid4().hex
        ends = {"source_type": "DATASET", "source_id": known[key], "destination_type": "RUN", "destination_id": run_id}
        edges.append({"input_uuid": edge, **ends})
        tags += [{"input_uuid": edge, "name": tag.key, "value": tag.value} for tag in each.tags]
    return [(models.SqlDataset, datasets), (models.SqlInput, edges), (models.SqlInputTag, tags)]
