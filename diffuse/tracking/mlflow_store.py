"""MLflow's client, as the delivery of runs needs it: few calls, each of which may be made again without harm."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from diffuse.tracking import failures, page, rows, sqlite, values
from diffuse.tracking.rows import Ended
from diffuse.tracking.store import Store

_LOCK_SECONDS = 90  # for another process to make the store
_SHOWN_SIDE = 256  # pixels, of the small picture that the page's grid shows
_SHEET_SIDE = 1024

ERROR_TAG = "diffuse.error"
RUN_TAG = "diffuse.run"  # the run's name in the journal, by which it is found again

# MLflow's own defaults wait minutes for a server that is gone, print links on standard output, and report usage to a
# server of theirs. What the user has set stays, except that standard output belongs to the saved paths.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def load() -> None:
    """Imports MLflow, quietly, with settings that suit a command line."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    import mlflow.tracking
    import mlflow.utils.logging_utils  # noqa: F401 - sets up the logger that is quietened here

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def load_database() -> None:
    """Imports what MLflow would import when it first opens a database."""
    load()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def client(uri: str) -> Any:
    """MLflow's client of the store at `uri`. Opens nothing yet."""
    load()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@dataclass
class Stored:
    """A run in the store. What it had before is known where it was found again."""

    run_id: str
    artifact_uri: str
    start_time: int
    params: frozenset[str] = frozenset()
    points: set[tuple[str, int]] = field(default_factory=set)  # (metric, step)
    tags: frozenset[str] = frozenset()


class Connection:
    """An open store. A method raises what MLflow raises; see `failures`."""

    def __init__(self, store: Store) -> None:
        """Opens the store of `store`, and makes it where it is an SQLite file that is not there yet."""
        if store.file is None:
            failures.knock(store.uri)
        if store.file:
            create(store.file, store.uri, store.artifacts)
        self._uri = store.uri
        self._experiments: dict[str, str] = {}
        self._repository: tuple[str, Any] = ("", None)  # of the run that was written last
        self._transactions: sqlite.Transactions | None = None
        if store.file:
            self._transactions = sqlite.open_with(store.file, lambda: self._open(store))
        else:
            self._open(store)

    def _open(self, store: Store) -> None:
        self._client = client(store.uri)
        self.experiment(store)

    @property
    def is_transactional(self) -> bool:
        """Whether an exception undoes what was done in a `transaction`."""
        return self._transactions is not None

    def transaction(self) -> AbstractContextManager[None]:
        """Several calls at the price of one, where the store is an SQLite file of ours."""
        return self._transactions.transaction() if self._transactions else nullcontext()

    def experiment(self, store: Store) -> str:
        """The id of the store's experiment. Several processes may begin at once, and one of them makes it."""
        if store.experiment not in self._experiments:
            self._experiments[store.experiment] = self._experiment(store.experiment, store.artifacts)
        return self._experiments[store.experiment]

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise ValueError(f"the experiment {name} is deleted: restore it, or set tracking.experiment=NAME")
        return str(found.experiment_id)

    def find(self, experiment: str, name: str) -> Stored | None:
        """The run that carries `name` as its `diffuse.run`."""
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
        if not found:
            return None
        (run,) = found
        history = (
            point
            for key in run.data.metrics
            if not key.startswith("system/")
            for point in self._client.get_metric_history(run.info.run_id, key)
        )
        points = {(point.key, point.step) for point in history}
        info = run.info
        known = frozenset(run.data.params), points, frozenset(run.data.tags)
        return Stored(info.run_id, info.artifact_uri, info.start_time, *known)

    def create(self, experiment: str, name: str, start_time: int, tags: Mapping[str, str]) -> Stored:
        """A new run, of the status RUNNING."""
        run = self._client.create_run(experiment, start_time, values.tags(tags), values.text(name))
        return Stored(run.info.run_id, run.info.artifact_uri, start_time)

    def add(self, experiment: str, runs: Sequence[Ended]) -> list[Stored]:
        """New runs with all that they have, where the store is transactional: what `create`, `log`, `log_weights` and
        `end` do for one. Raises what SQLAlchemy raises, and ValueError for what is better left to those."""
        assert self._transactions is not None
        if not runs:
            return []
        with self._transactions.engine.begin() as connection:
            added = rows.insert(connection, experiment, runs)
        return [Stored(*ids, run.start_time) for ids, run in zip(added, runs, strict=True)]

    def known(self, experiment: str, names: Sequence[str]) -> set[str]:
        """Those of `names` that `find` would find, where the store is transactional."""
        assert self._transactions is not None
        if not names:
            return set()
        with self._transactions.engine.begin() as connection:
            return rows.known(connection, experiment, RUN_TAG, names)

    def log(
        self,
        run: Stored,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Iterable[values.Metric] = (),
    ) -> None:
        """Parameters, tags and metrics in as few calls as may be, less what was there."""
        from mlflow.entities import Metric, Param, RunTag

        fresh = ((key, value) for key, value in values.params(params or {}).items() if key not in run.params)
        points = (row for row in values.metrics(metrics) if (row[0], row[3]) not in run.points)
        together = zip_longest(
            values.batches(fresh, values.BATCH_PARAMETERS),
            values.batches(values.tags(tags or {}).items(), values.BATCH_PARAMETERS),
            values.batches(points, values.BATCH_METRICS),
            fillvalue=(),
        )
        for some_params, some_tags, some_metrics in together:
            self._client.log_batch(
                run.run_id,
                params=[Param(*pair) for pair in some_params],
                tags=[RunTag(*pair) for pair in some_tags],
                metrics=[Metric(*row) for row in some_metrics],
            )

    def log_weights(self, run: Stored, weights: Mapping[str, Any]) -> None:
        """What the run read."""
        from mlflow.exceptions import MlflowException

        used = [values.dataset(weights)]
        try:
            self._client.log_inputs(run.run_id, used)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # Of several that record new weights at the same moment, the database takes one; now they are there.
            self._client.log_inputs(run.run_id, used)

    def log_folder(self, run: Stored, folder: Path) -> None:
        """Every file below `folder`; each replaces an earlier one of that name."""
        self.artifacts(run).log_artifacts(str(folder))

    def artifacts(self, run: Stored) -> Any:
        """MLflow's access to the files of a run, which is kept for the next call."""
        if self._repository[0] != run.artifact_uri:
            # What the client does as well, after it has asked the store for what is known here.
            self._repository = run.artifact_uri, repository(run.artifact_uri, self._uri)
        return self._repository[1]

    def reopen(self, run: Stored) -> None:
        """Has a run that ended once be of the status RUNNING again, without the error that it may have ended with."""
        self._client.update_run(run.run_id, status="RUNNING")
        if ERROR_TAG in run.tags:
            self._client.delete_tag(run.run_id, ERROR_TAG)

    def end(self, run: Stored, status: str, end_time: int) -> None:
        """The status that the run ended with."""
        self._client.set_terminated(run.run_id, status=status, end_time=end_time)


def repository(artifact_uri: str, store_uri: str) -> Any:
    """MLflow's access to the files of a run."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifact_uri, tracking_uri=store_uri)


def replace_files(repository: Any, name: str, files: Sequence[Path]) -> None:
    """Lays `files` below `name`, and removes what else was there: it is of an earlier report, say."""
    with tempfile.TemporaryDirectory(prefix="diffuse-") as place:
        for file in files:
            os.symlink(file.absolute(), Path(place, file.name))
        repository.log_artifacts(place, name)
    new = {file.name for file in files}
    for there in repository.list_artifacts(name):
        if there.is_dir or Path(there.path).name in new:
            continue
        try:
            repository.delete_artifacts(there.path)
        except Exception as error:
            if failures.is_away(error):
                raise
            return  # not every place of files lets them be removed; then the old ones lie beside the new


def stage_picture(path: Path, step: int, run: Stored, folder: Path, *, sheet: bool = False) -> None:
    """Lays a saved picture into `folder` as MLflow's log_image would name it: whole and small.

    log_image draws a random name for each call, so that one made again would double the picture, and makes eight calls
    of the store. Here the name follows from the run and the step. A PNG goes as it is, with the record in it.
    """
    from PIL import Image

    from diffuse.media.formats import STILL_SUFFIXES

    if path.suffix.lower() not in STILL_SUFFIXES:
        return

    key, side = (page.SHEET_KEY, _SHEET_SIDE) if sheet else (page.IMAGE_KEY, _SHOWN_SIDE)
    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{run.run_id} {step}")
    images = folder / "images"
    images.mkdir(exist_ok=True)
    shown = images / f"{key}+step+{step}+timestamp+{run.start_time}+{name}.png"
    with Image.open(path) as picture:
        if path.suffix.lower() == ".png":
            os.symlink(path, shown)
        else:
            picture.convert("RGB").save(shown)
        small = picture.convert("RGB")
        scale = side / max(small.size)
        if scale < 1:
            small = small.resize([max(1, round(side * scale)) for side in small.size])
        if sheet:  # the page centres it in a square, most of which may lie below what a window shows
            square = Image.new("RGBA", (max(small.size),) * 2)
            square.paste(small)
            small = square
        small.save(shown.with_name(f"{shown.stem}+compressed.webp"))


def create(file: Path, uri: str, artifacts: str | None) -> None:
    """Make an SQLite store, once.

    MLflow migrates a new database through its whole history: for seconds, which two processes must not do at once, and
    which leaves an unusable store when it is interrupted. So it happens under a lock, in a file that takes the store's
    name when it is complete.
    """
    if file.exists() and file.stat().st_size:
        return
    load()
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock"), timeout=_LOCK_SECONDS):
        if file.exists() and file.stat().st_size:
            return
        unfinished = file.with_name(f".{file.name}-{secrets.token_hex(8)}.tmp")
        try:
            scheme = uri.partition(":")[0]
            make: Any = SqlAlchemyStore
            with _loggers_kept():
                make(f"{scheme}:///{unfinished}", artifacts).engine.dispose()
            os.replace(unfinished, file)
        finally:
            for rest in file.parent.glob(f"{unfinished.name}*"):  # with SQLite's journal
                rest.unlink(missing_ok=True)


@contextmanager
def _loggers_kept() -> Iterator[None]:
    """MLflow's migration configures logging anew, which disables every logger there is."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    enabled = [logger for logger in loggers if not logger.disabled]
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        yield
    finally:
        for logger in enabled:
            logger.disabled = False
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
