"""MLflow's client, as the delivery of runs needs it: few calls, each of which may be made again without harm."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from diffuse.tracking import failures, values
from diffuse.tracking.address import sqlalchemy_uri
from diffuse.tracking.store import Store
from diffuse.tracking.tags import ERROR_TAG, RUN_TAG
from diffuse.tracking.upgrade import store_lock

_RESTORE = "restore it, or set tracking.experiment=NAME"

# MLflow's own defaults wait minutes for a server that is gone, print links on standard output, and report usage to a
# server of theirs. What the user has set stays, except that standard output belongs to the saved paths.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def import_mlflow() -> None:
    """Imports MLflow, quietly, with settings that suit a command line."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    import mlflow  # noqa: F401 - sets up the logger that is quietened here

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def open_client(uri: str) -> Any:
    """Returns MLflow's client of the store at `uri`. It opens a database, and creates one that is not there."""
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=sqlalchemy_uri(uri))


def open_store(store: Store) -> Any:
    """Returns MLflow's client of a store. An SQLite file is created or upgraded where needed.

    Raises OSError at once where no server or database answers, UnusableStore, and whatever MLflow raises.
    """
    if store.file:
        create_store(store.file, store.uri)
        store.prepare_file()
    else:
        failures.check_reachable(store.uri)
    return open_client(store.uri)


def create_store(file: Path, uri: str) -> None:
    """Creates an SQLite store, once.

    MLflow migrates a new database through its whole history: for seconds, which two processes must not do at once, and
    which leaves an unusable store when it is interrupted. So it happens under a lock, in a file that takes the store's
    name when it is complete.
    """
    if file.exists() and file.stat().st_size:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with store_lock(file):
        if file.exists() and file.stat().st_size:
            return
        unfinished = file.with_name(f".{file.name}-{secrets.token_hex(8)}.tmp")
        try:
            with chdir(file.parent):  # where MLflow's default experiment, which is not ours, keeps its files
                open_client(f"{uri.partition(':')[0]}:///{unfinished}")
            os.replace(unfinished, file)
        finally:
            for rest in file.parent.glob(f"{unfinished.name}*"):  # with SQLite's journal
                rest.unlink(missing_ok=True)


@dataclass
class StoredRun:
    """A run in the store. What it holds already is known only where the run was looked up."""

    run_id: str
    start_time: int  # milliseconds
    params: frozenset[str] = frozenset()
    points: set[tuple[str, int]] = field(default_factory=set)  # (metric, step)
    tags: frozenset[str] = frozenset()


class UnusableExperiment(ValueError):
    """An experiment that takes no runs, whoever asks and whenever: it is deleted, or MLflow refuses its name."""

    def __init__(self, reason: str, remedy: str = "set tracking.experiment=NAME") -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason


class Connection:
    """An open store. A method raises what MLflow raises; see `failures`."""

    def __init__(self, store: Store) -> None:
        self._client = open_store(store)
        self._experiments: dict[tuple[str | None, str | None], str] = {}

    def experiment(self, store: Store) -> str:
        """Returns the id of the store's experiment. Several processes may begin at once, and one of them creates it."""
        key = store.experiment, store.experiment_id
        if key not in self._experiments:
            self._experiments[key] = self._experiment(store)
        return self._experiments[key]

    def check_experiment(self, store: Store) -> None:
        """Asks for the experiment again. Raises UnusableExperiment where it takes no runs any more."""
        self._experiments.pop((store.experiment, store.experiment_id), None)
        self.experiment(store)

    def _experiment(self, store: Store) -> str:
        if store.experiment_id is not None:
            return self._experiment_by_id(store.experiment_id, store.experiment)
        return self._experiment_by_name(str(store.experiment), store.artifacts)

    def _experiment_by_id(self, number: str, name: str | None) -> str:
        try:
            experiment = self._client.get_experiment(number)
        except Exception as error:
            if not failures.is_refusal(error):
                raise
            raise UnusableExperiment(f"there is no experiment with the id {number}") from error
        if name is not None and experiment.name != name:
            raise UnusableExperiment(f"the experiment with the id {number} is {experiment.name}, and not {name}")
        if experiment.lifecycle_stage == "deleted":
            raise UnusableExperiment(f"the experiment {experiment.name} is deleted", _RESTORE)
        return str(experiment.experiment_id)

    def _experiment_by_name(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        try:
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return str(self._client.create_experiment(name, artifact_location=artifacts))
                except MlflowException:
                    experiment = self._client.get_experiment_by_name(name)
                    if experiment is None:
                        raise
        except MlflowException as error:
            if not failures.is_refusal(error):
                raise
            raise UnusableExperiment(f"{_experiment_label(name)}: {failures.error_line(error)}") from error
        if experiment.lifecycle_stage == "deleted":
            raise UnusableExperiment(f"the experiment {name} is deleted", _RESTORE)
        return str(experiment.experiment_id)

    def find(self, experiment: str, name: str) -> StoredRun | None:
        """Returns the run that carries `name` as its `diffuse.run`, if there is one."""
        runs = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
        if not runs:
            return None
        info, data = runs[0].info, runs[0].data
        history = (
            point
            for key in data.metrics
            if not key.startswith("system/")
            for point in self._client.get_metric_history(info.run_id, key)
        )
        points = {(point.key, point.step) for point in history}
        return StoredRun(info.run_id, info.start_time, frozenset(data.params), points, frozenset(data.tags))

    def create(self, experiment: str, name: str, start_time: int, tags: Mapping[str, str]) -> StoredRun:
        """Creates a run with the status RUNNING."""
        run = self._client.create_run(experiment, start_time, values.tag_values(tags), values.utf8(name))
        return StoredRun(run.info.run_id, start_time)

    def log(
        self,
        run: StoredRun,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Iterable[values.Metric] = (),
    ) -> None:
        """Sends parameters, tags and metrics that the run lacks, in one call where MLflow's limits allow it."""
        from mlflow.entities import Metric, Param, RunTag

        new_params = [pair for pair in values.param_values(params or {}).items() if pair[0] not in run.params]
        points = [row for row in values.metric_values(metrics) if (row[0], row[3]) not in run.points]
        calls = zip_longest(
            values.batches(new_params, values.BATCH_PARAMETERS),
            values.batches(values.tag_values(tags or {}).items(), values.BATCH_PARAMETERS),
            values.batches(points, values.BATCH_METRICS),
            fillvalue=(),
        )
        for some_params, some_tags, some_points in calls:
            self._client.log_batch(
                run.run_id,
                params=[Param(*pair) for pair in some_params],
                tags=[RunTag(*pair) for pair in some_tags],
                metrics=[Metric(*row) for row in some_points],
            )

    def log_weights(self, run: StoredRun, weights: Mapping[str, Any]) -> None:
        """Records the weights that the run reads, as its input."""
        from mlflow.exceptions import MlflowException

        inputs = [values.dataset_input(weights)]
        try:
            self._client.log_inputs(run.run_id, inputs)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # Of several that record new weights at the same moment, the database takes one; now they are there.
            self._client.log_inputs(run.run_id, inputs)

    def log_folder(self, run: StoredRun, folder: Path) -> None:
        """Sends every file below `folder`; each replaces an earlier one of its name."""
        self._client.log_artifacts(run.run_id, str(folder))

    def replace_files(self, run: StoredRun, name: str, files: Sequence[Path]) -> None:
        """See `replace_files` of this module."""
        replace_files(self._client, run.run_id, name, files)

    def reopen(self, run: StoredRun) -> None:
        """Gives a run that has ended the status RUNNING again, and removes its error."""
        self._client.update_run(run.run_id, status="RUNNING")
        if ERROR_TAG in run.tags:
            self._client.delete_tag(run.run_id, ERROR_TAG)

    def end(self, run: StoredRun, status: str, end_time: int) -> None:
        """Sets the status that the run ended with."""
        self._client.set_terminated(run.run_id, status=status, end_time=end_time)


def replace_files(client: Any, run_id: str, name: str, files: Sequence[Path]) -> None:
    """Puts `files` below `name` in a run, and removes other files there, which are those of an earlier report."""
    with tempfile.TemporaryDirectory(prefix="diffuse-") as folder:
        for file in files:
            os.symlink(file.absolute(), Path(folder, file.name))
        client.log_artifacts(run_id, folder, name)
    new = {file.name for file in files}
    old = [entry.path for entry in client.list_artifacts(run_id, name) if not entry.is_dir]
    old = [path for path in old if Path(path).name not in new]
    if not old:
        return
    # MLflow's client cannot remove a file; this is the one use of what lies below it.
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(client.get_run(run_id).info.artifact_uri, tracking_uri=client.tracking_uri)
    for path in old:
        try:
            repository.delete_artifacts(path)
        except Exception as error:
            if failures.is_unavailable(error):
                raise
            return  # not every place of files lets them be removed; then the old ones lie beside the new


def _experiment_label(name: str) -> str:
    """Returns how a message calls an experiment that cannot be."""
    return (
        f"the experiment {name if len(name) <= 60 else f'{name[:57]}...'}" if name else "an experiment without a name"
    )
