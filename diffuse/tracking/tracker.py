"""Recording a run from the process that makes it, without waiting for MLflow, and without importing it.

What is logged goes into the journal on disk at once, and from there to the store by a process of its own. Failures of
the store become warnings: a tracker never costs a picture.
"""

from __future__ import annotations

import getpass
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse.errors import MediaError
from diffuse.media.load import content_sha256
from diffuse.record.values import redact
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal, process
from diffuse.tracking.experiment_id import check_experiment_id
from diffuse.tracking.images import IMAGE_KEY, SHEET_KEY
from diffuse.tracking.journal import Entry, Spool
from diffuse.tracking.store import Store
from diffuse.tracking.tags import ERROR_TAG

_ID = re.compile(r"[\w.:-]{1,200}", re.ASCII)


class TrackedRun:
    """A run that is recorded nowhere; JournaledRun is the other kind.

    Log data, then call `finish`. No method waits, and none raises for a fault of the store.
    """

    id: str | None = None  # the tag `diffuse.run`, by which the store can be asked for the run from the start

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once it is in the store."""
        return None

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Adds tags to the run."""

    def log_steps(self, seconds: Sequence[float]) -> None:
        """Logs the duration of each denoising step: the metric `time/step_s`, by step."""

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Logs one value each; None is left out."""

    def log_media(self, path: Path, step: int = 0) -> None:
        """Logs a saved file, as `media/` and as an image that MLflow shows. `step` is its index in the run."""

    def log_sheet(self, path: Path, step: int = 0) -> None:
        """Logs a contact sheet as an image that MLflow shows. The file has to stay until the tracker closes."""

    def log_text(self, name: str, text: str) -> None:
        """Logs a small text file; it replaces an earlier one of the same name."""

    def log_files(self, name: str, files: Sequence[Path]) -> None:
        """Logs files below `name`, in the place of those there. They have to stay until the tracker closes."""

    def finish(self, error: str | None = None, *, interrupted: bool = False) -> None:
        """Ends the run: FAILED where there is an `error`, KILLED where the user `interrupted` it."""


class Tracker:
    """A tracker that keeps nothing (`tracking=none`); JournaledTracker is the other kind.

    Several runs may be open at once. Only `close` waits.
    """

    def start(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        *,
        weights: Mapping[str, Any] | None = None,
        id: str | None = None,
        again: bool = False,
    ) -> TrackedRun:
        """Starts a run.

        Args:
            params: parameters by dotted key.
            artifacts: texts by file name.
            weights: source, revision, variant and sha256 of what the run reads.
            id: the tag `diffuse.run`; a new one by default.
            again: the run of that id in the store is continued, if there is one.
        """
        return TrackedRun()

    def close(self) -> list[str]:
        """Waits until everything is stored, and returns one line for each thing that went wrong."""
        return []


def open_tracker(cfg: TrackingConfig) -> Tracker:
    """Returns the tracker that `cfg` asks for.

    Raises ConfigError for a `tracking.uri` that can hold no runs, and for the id of an experiment that takes none.
    Whether the store can be reached shows later.
    """
    return Tracker() if cfg.name == "none" else JournaledTracker(_store(cfg))


def _store(cfg: TrackingConfig) -> Store:
    store = Store.from_config(cfg)
    check_experiment_id(store)
    return store


def start_worker(cfg: TrackingConfig) -> None:
    """Starts the process that delivers, if `cfg` asks for one, so that it imports MLflow meanwhile. Call it early."""
    if cfg.name != "none":
        store = _store(cfg)
        process.worker(store).open_store(store)


class JournaledRun(TrackedRun):
    """A run on its way to a store: each method adds a line to its file in the journal."""

    def __init__(self, tracker: JournaledTracker, entry: Entry | None, id: str) -> None:
        """`entry` is None where the journal cannot be written at all."""
        self._tracker = tracker
        self._entry = entry
        self.id = id
        self.finished = False

    @property
    def run_id(self) -> str | None:
        return None if self.id is None else self._tracker.run_id(self.id)

    def write(self, event: Mapping[str, Any]) -> None:
        """Adds a line to the journal; see `journal` for what it may hold."""
        if self._entry is None:
            return
        try:
            self._entry.append({"time": _now(), **event})
        except OSError as error:
            self._tracker.write_failed(error)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.write({"tags": dict(tags)})

    def log_steps(self, seconds: Sequence[float]) -> None:
        self.write({"metrics": [("time/step_s", float(value), step) for step, value in enumerate(seconds)]})

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        self.write({"metrics": [(key, float(value), 0) for key, value in metrics.items() if value is not None]})

    def log_media(self, path: Path, step: int = 0) -> None:
        self._log_image(path, step, IMAGE_KEY)

    def log_sheet(self, path: Path, step: int = 0) -> None:
        self._log_image(path, step, SHEET_KEY)

    def _log_image(self, path: Path, step: int, key: str) -> None:
        path = Path(path).absolute()
        try:
            digest = content_sha256(path)
        except MediaError as error:
            self._tracker.write_failed(error.__cause__ if isinstance(error.__cause__, OSError) else OSError(str(error)))
        else:
            self.write({"media": [{"path": str(path), "step": step, "sha256": digest, "key": key}]})

    def log_text(self, name: str, text: str) -> None:
        self.write({"texts": {name: text}})

    def log_files(self, name: str, files: Sequence[Path]) -> None:
        self.write({"files": {name: [str(Path(file).absolute()) for file in files]}})

    def finish(self, error: str | None = None, *, interrupted: bool = False) -> None:
        status = "KILLED" if interrupted else "FAILED" if error is not None else "FINISHED"
        tags = {} if error is None else {ERROR_TAG: redact(error)}
        self.write({"tags": tags, "end": status})
        self.finished = True
        self._tracker.wake()


class JournaledTracker(Tracker):
    """Keeps runs in the journal, and has a worker process deliver them to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._worker = process.worker(store)
        self._spool: Spool | None = None
        self._write_error: OSError | None = None  # the first one; the journal lacks something since
        self._runs: list[JournaledRun] = []  # those not known to be finished

    def start(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: Mapping[str, str],
        *,
        weights: Mapping[str, Any] | None = None,
        id: str | None = None,
        again: bool = False,
    ) -> JournaledRun:
        id = id or uuid.uuid4().hex
        if not _ID.fullmatch(id):
            raise ValueError(f"a run cannot be named {id!r}")
        spool = self._open_spool()
        run = JournaledRun(self, spool.entry() if spool else None, id)
        self._runs = [earlier for earlier in self._runs if not earlier.finished] + [run]
        source = {"mlflow.source.name": "diffuse", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
        begin = {"id": id, "name": name, "time": _now(), "again": again}
        event = {"begin": begin, "params": dict(params), "tags": {**source, **tags}, "texts": dict(artifacts)}
        run.write(event | ({"weights": dict(weights)} if weights else {}))
        return run

    def close(self) -> list[str]:
        for run in self._runs:
            if not run.finished:
                run.finish("the program ended before the run did")
        if journal.spools(self._store.journal):
            self._open_spool()  # what others left is delivered too
        spool = self._spool
        if spool is None:
            return self._write_warnings()
        warnings = self._worker.close(spool.folder, self._store)
        spool.close()
        if count := len(journal.run_files(spool.folder)):
            runs = "1 run waits" if count == 1 else f"{count} runs wait"
            first = warnings[0] if warnings else f"{self._store.setting}: not delivered"
            waiting = f"{runs} in {self._store.journal} for: {self._store.sync_command}"
            warnings[:1] = [f"{first}; pictures are saved all the same, and {waiting}"]
        return warnings + self._write_warnings()

    def run_id(self, id: str) -> str | None:
        """Returns MLflow's id of the run whose `diffuse.run` is `id`, once it is in the store."""
        return self._worker.run_id(id)

    def wake(self) -> None:
        """Tells the worker that a run has ended, and can be delivered."""
        self._worker.wake()

    def write_failed(self, error: OSError) -> None:
        """Keeps the reason why the journal lacks something, for a warning."""
        self._write_error = self._write_error or error

    def _write_warnings(self) -> list[str]:
        error = self._write_error
        if error is None:
            return []
        reason = f"{error.filename or self._store.journal}: {error.strerror}"
        setting = self._store.setting
        return [f"{setting}: {reason}; pictures are saved all the same, and what could not be written is not tracked"]

    def _open_spool(self) -> Spool | None:
        """Returns this tracker's part of the journal; None where it cannot be written."""
        if self._spool is None:
            try:
                self._spool = Spool(self._store)
            except OSError as error:
                self.write_failed(error)
                return None
            self._worker.open_spool(self._spool.folder, self._store)
        return self._spool


def _now() -> int:
    return time.time_ns() // 1_000_000  # milliseconds, as MLflow counts


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"
