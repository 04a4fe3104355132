"""The only import of MLflow: runs, their numbers and their pictures in a tracking store, and the page that shows them.

MLflow takes seconds to import and to open a store. All of it happens in order in one background thread, beside the
run, and what goes wrong there becomes a warning: a tracker never costs a picture.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import queue
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse import tracking_page
from diffuse.errors import ConfigError
from diffuse.record import redact
from diffuse.request import TrackingConfig
from diffuse.tracking_store import Store

PARAMETER_CHARACTERS = 6000  # MLflow's own limits
_TAG_CHARACTERS = 5000
_KEY_CHARACTERS = 250
_BATCH_PARAMETERS = 100
_BATCH_METRICS = 500
_BATCH_BYTES = 500_000

_CONNECT_SECONDS = 5
_LOCK_SECONDS = 90  # for another process to make the store
_STALL_SECONDS = 120  # close() waits no longer than this for something to happen

# MLflow's own defaults wait minutes for a server that is gone, print links on standard output, and report usage to a
# server of theirs. What the user has set stays, except that standard output belongs to the saved paths.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

log = logging.getLogger(__name__)


class TrackedRun:
    """One run, as far as it is known. This one goes nowhere; MlflowRun is the other.

    What there is to log, then `finish`. No method waits, and none raises for what is the store's fault.
    """

    run_id: str | None = None  # once the store has given it one

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run."""

    def log_steps(self, seconds: Sequence[float]) -> None:
        """How long each denoising step took: the metric `time/step_s`, by step."""

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """One value each; None is left out."""

    def log_media(self, path: Path, step: int = 0) -> None:
        """A saved picture: the file itself under `media/`, and the image that MLflow shows. `step` counts the run's."""

    def log_text(self, name: str, text: str) -> None:
        """A small text file; it replaces an earlier one of the same name."""

    def finish(self, error: str | None = None, *, interrupted: bool = False) -> None:
        """End the run: it failed where there is an `error`, and was killed where the user `interrupted` it."""


class Tracker:
    """Where the record of runs goes. This one keeps nothing (`tracking=none`); MlflowTracker is the other.

    Several runs may be open at once. Only `close` waits.
    """

    def start(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Mapping[str, str]
    ) -> TrackedRun:
        """Begin a run. `params` are parameters by dotted key, `artifacts` texts by file name."""
        return TrackedRun()

    def close(self) -> list[str]:
        """Wait until everything is stored, and give one line for each thing that went wrong."""
        return []


def open_tracker(cfg: TrackingConfig) -> Tracker:
    """The tracker that `cfg` asks for. MLflow's import begins at once, in the background.

    Raises ConfigError for a `tracking.uri` that can hold no runs. Whether the store can be reached is found out later.
    """
    return Tracker() if cfg.name == "none" else MlflowTracker(Store.of(cfg))


def ui(cfg: TrackingConfig, port: int | None = None) -> None:
    """Open the pages of the store, print the link that shows the pictures, and end with Ctrl-C.

    Raises ConfigError where there is no store, and RunError where MLflow's server does not start.
    """
    if cfg.name == "none":
        raise ConfigError("tracking=none keeps no runs to show; use tracking=mlflow")
    tracking_page.serve(Store.of(cfg), port, lambda link: print(link, flush=True))


class MlflowRun(TrackedRun):
    """A run in an MLflow store; what is logged is done by its tracker's thread."""

    def __init__(self, tracker: MlflowTracker) -> None:
        self._tracker = tracker
        self.finished = False  # as the caller sees it

    def begin(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Mapping[str, str]
    ) -> None:
        """Have the run made in the store."""
        now, params, artifacts = _now(), dict(params), dict(artifacts)
        tags = {"mlflow.source.name": "diffuse", "mlflow.source.type": "LOCAL", "mlflow.user": _user(), **tags}

        def job() -> None:
            self.run_id = self._tracker.create_run(_storable(name), now)
            self._tracker.log(self.run_id, params=params, tags=tags)
            self._tracker.log_texts(self.run_id, artifacts)

        self._tracker.put("begin the run", job)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        tags = dict(tags)
        self._put("log tags", lambda run_id: self._tracker.log(run_id, tags=tags))

    def log_steps(self, seconds: Sequence[float]) -> None:
        now, values = _now(), [("time/step_s", value, step) for step, value in enumerate(seconds)]
        self._put("log the steps", lambda run_id: self._tracker.log(run_id, metrics=values, time=now))

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        now, values = _now(), [(key, float(value), 0) for key, value in metrics.items() if value is not None]
        self._put("log metrics", lambda run_id: self._tracker.log(run_id, metrics=values, time=now))

    def log_media(self, path: Path, step: int = 0) -> None:
        path = Path(path).absolute()
        self._put(f"log {path.name}", lambda run_id: self._tracker.log_media(run_id, path, step))

    def log_text(self, name: str, text: str) -> None:
        self._put(f"log {name}", lambda run_id: self._tracker.log_texts(run_id, {name: text}))

    def finish(self, error: str | None = None, *, interrupted: bool = False) -> None:
        now = _now()
        status = "KILLED" if interrupted else "FAILED" if error is not None else "FINISHED"
        self._put("end the run", lambda run_id: self._tracker.end(run_id, status, now, error))
        self.finished = True

    def _put(self, what: str, job: Callable[[str], None]) -> None:
        def with_run() -> None:
            if self.run_id is not None:  # else the run could not begin, which has been told
                job(self.run_id)

        self._tracker.put(what, with_run)


class MlflowTracker(Tracker):
    """Writes to an MLflow store from a thread of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._warnings: dict[str, str] = {}  # reason -> the line that told it first
        self._client: Any = None
        self._experiment_id = ""
        self._lost = False  # the store does not answer: nothing more is tried
        self._runs: list[MlflowRun] = []  # those not known to be finished
        self._moved = time.monotonic()  # when the thread last got something done
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        self._thread = threading.Thread(target=self._work, name="diffuse-tracking", daemon=True)
        self._thread.start()

    def start(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Mapping[str, str]
    ) -> MlflowRun:
        run = MlflowRun(self)
        self._runs = [earlier for earlier in self._runs if not earlier.finished] + [run]
        run.begin(name, params, tags, artifacts)
        return run

    def close(self) -> list[str]:
        for run in self._runs:
            if not run.finished:
                run.finish("the program ended before the run did")
        self._jobs.put(None)
        self._moved = max(self._moved, time.monotonic())
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)
            if time.monotonic() - self._moved > _STALL_SECONDS:
                return [*self._warnings.values(), self._line(f"did nothing for {_STALL_SECONDS} s and was given up")]
        return list(self._warnings.values())

    def put(self, what: str, job: Callable[[], None]) -> None:
        """Have the thread do `job`, after all that it was given before."""
        self._jobs.put((what, job))

    def create_run(self, name: str, start_time: int) -> str:
        """A new run in the store, and its id."""
        run = self._client.create_run(self._experiment_id, start_time=start_time, run_name=name)
        return str(run.info.run_id)

    def _work(self) -> None:
        try:
            self._connect()
        except Exception as error:
            self._lost = True
            self._warn("", error)
        while (entry := self._jobs.get()) is not None:
            self._moved = time.monotonic()
            if self._lost:
                continue
            what, job = entry
            try:
                job()
            except Exception as error:
                self._lost = _is_unreachable(error)
                self._warn(f"could not {what}: ", error)

    def _warn(self, what: str, error: Exception) -> None:
        reason = _why(error)
        self._warnings.setdefault(reason, self._line(what + reason))

    def _line(self, what: str) -> str:
        if self._lost:
            what += "; pictures are saved all the same, what came after is not tracked"
        return f"tracking.uri={self._store.shown}: {' '.join(what.split())}"

    def _connect(self) -> None:
        if self._store.is_server:
            _knock(self._store.uri)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._moved = time.monotonic()
        if self._store.file:
            _create(self._store.file, self._store.uri, self._store.artifacts)
            self._moved = time.monotonic()
        self._client = MlflowClient(tracking_uri=self._store.uri)
        self._experiment_id = self._experiment()

    def _experiment(self) -> str:
        """The experiment's id. Several processes may begin at once, and one of them makes it."""
        from mlflow.exceptions import MlflowException

        name = self._store.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=self._store.artifacts))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise ValueError(f"the experiment {name} is deleted: restore it, or set tracking.experiment=NAME")
        return str(found.experiment_id)

    def log(
        self,
        run_id: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Iterable[tuple[str, float, int]] = (),
        time: int = 0,
    ) -> None:
        """Write parameters, tags and metrics (name, value, step) in as few calls as may be."""
        from mlflow.entities import Metric, Param, RunTag

        named = {_key(key): _value(value)[:PARAMETER_CHARACTERS] for key, value in (params or {}).items()}
        for batch in _batches(named.items(), _BATCH_PARAMETERS):
            self._client.log_batch(run_id, params=[Param(*pair) for pair in batch])
        labels = {_key(key): _storable(str(value))[:_TAG_CHARACTERS] for key, value in (tags or {}).items()}
        for batch in _batches(labels.items(), _BATCH_PARAMETERS):
            self._client.log_batch(run_id, tags=[RunTag(*pair) for pair in batch])
        for rows in _batches(metrics, _BATCH_METRICS):
            self._client.log_batch(run_id, metrics=[Metric(key, value, time, step) for key, value, step in rows])

    def log_texts(self, run_id: str, texts: Mapping[str, str]) -> None:
        """Write small files, by name."""
        with tempfile.TemporaryDirectory(prefix="diffuse-") as folder:
            for name, text in texts.items():
                Path(folder, name).write_text(text, encoding="utf-8", errors="backslashreplace")
            self._client.log_artifacts(run_id, folder)

    def log_media(self, run_id: str, path: Path, step: int) -> None:
        """The file itself, and the image for the page's grid; that one has lost the record."""
        from PIL import Image

        self._client.log_artifact(run_id, str(path), "media")
        with Image.open(path) as picture:
            self._client.log_image(run_id, picture.convert("RGB"), key=tracking_page.IMAGE_KEY, step=step)

    def end(self, run_id: str, status: str, end_time: int, error: str | None) -> None:
        """The run's status, and why it failed."""
        try:
            if error is not None:
                self.log(run_id, tags={"diffuse.error": redact(error)})
        finally:
            self._client.set_terminated(run_id, status=status, end_time=end_time)


def _create(file: Path, uri: str, artifacts: str | None) -> None:
    """Make an SQLite store, once.

    MLflow migrates a new database through its whole history: for seconds, which two processes must not do at once, and
    which leaves an unusable store when it is interrupted. So it happens under a lock, in a file that takes the store's
    name when it is complete.
    """
    if file.exists() and file.stat().st_size:
        return
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
            make(f"{scheme}:///{unfinished}", artifacts).engine.dispose()
            os.replace(unfinished, file)
        finally:
            for rest in file.parent.glob(f"{unfinished.name}*"):  # with SQLite's journal
                rest.unlink(missing_ok=True)


def _knock(uri: str) -> None:
    """Raises OSError where no server answers: a moment, not the minutes that MLflow would try."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_CONNECT_SECONDS).close()
    except requests.exceptions.SSLError:
        return  # it answers; whether its certificate is good enough is MLflow's to judge
    except requests.exceptions.RequestException as error:
        raise ConnectionError("the server does not answer") from error


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether a connection failed: MLflow wraps what its HTTP library raised."""
    import requests

    while error is not None:
        if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _why(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"MLflow cannot be imported ({error}); install it, or set tracking=none"
    if _is_unreachable(error):
        return "the server does not answer"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return str(redact(line))[:300]


def _batches(items: Iterable[tuple[Any, ...]], most: int) -> Iterator[list[tuple[Any, ...]]]:
    """`items` in batches that MLflow takes: of at most `most`, and within the size of one request."""
    batch: list[tuple[Any, ...]] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if batch and (len(batch) == most or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _key(key: str) -> str:
    return re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII)[:_KEY_CHARACTERS]


def _value(value: Any) -> str:
    """Text as it is; other values as JSON has them: null, true, 0.5, [1, 2]."""
    return _storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _storable(text: str) -> str:
    r"""Bytes of a path that are not UTF-8, which Python has as lone surrogates and no store takes, become `\udc..`."""
    return text.encode(errors="backslashreplace").decode()


def _now() -> int:
    return time.time_ns() // 1_000_000  # milliseconds, as MLflow counts


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"
