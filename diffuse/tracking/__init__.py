"""Runs, their numbers and their pictures, on their way to a tracking store; and the page that shows them.

Nothing of MLflow is imported here. What is logged goes into the journal on disk at once, and from there to the store
by a process of its own, beside the run; what goes wrong there becomes a warning: a tracker never costs a picture.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.record.values import redact
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal, page, process
from diffuse.tracking.journal import Entry, Spool
from diffuse.tracking.store import Store

SWEEP_KIND = page.SWEEP_KIND
_SWEEP_CHARACTERS = 12
_ID = re.compile(r"[\w.:-]{1,200}", re.ASCII)


class TrackedRun:
    """One run. This one goes nowhere; JournaledRun is the other.

    What there is to log, then `finish`. No method waits, and none raises for what is the store's fault.
    """

    id: str | None = None  # the tag `diffuse.run`, by which the store can be asked for the run from the start

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once it is in the store."""
        return None

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run."""

    def log_steps(self, seconds: Sequence[float]) -> None:
        """How long each denoising step took: the metric `time/step_s`, by step."""

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """One value each; None is left out."""

    def log_media(self, path: Path, step: int = 0) -> None:
        """A saved picture: the file itself under `media/`, and the image that MLflow shows. `step` counts the run's."""

    def log_sheet(self, path: Path, step: int = 0) -> None:
        """A contact sheet, among the images that MLflow shows. It has to stay until the tracker closes."""

    def log_text(self, name: str, text: str) -> None:
        """A small text file; it replaces an earlier one of the same name."""

    def log_files(self, name: str, files: Sequence[Path]) -> None:
        """Files, below `name`, in the place of those that were there. They have to stay until the tracker closes."""

    def finish(self, error: str | None = None, *, interrupted: bool = False) -> None:
        """End the run: it failed where there is an `error`, and was killed where the user `interrupted` it."""


class Tracker:
    """Where the record of runs goes. This one keeps nothing (`tracking=none`); JournaledTracker is the other.

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
        """Begin a run. `params` are parameters by dotted key, `artifacts` texts by file name.

        `weights` are the source, revision, variant and sha256 of what the run reads. `id` names the run, so that it
        can be begun `again`: then the one of that name in the store is continued, if there is one.
        """
        return TrackedRun()

    def close(self) -> list[str]:
        """Wait until everything is stored, and give one line for each thing that went wrong."""
        return []


def open_tracker(cfg: TrackingConfig) -> Tracker:
    """The tracker that `cfg` asks for.

    Raises ConfigError for a `tracking.uri` that can hold no runs. Whether the store can be reached is found out later.
    """
    return Tracker() if cfg.name == "none" else JournaledTracker(Store.of(cfg))


def prepare(cfg: TrackingConfig) -> None:
    """Has the process that delivers import MLflow meanwhile, if `cfg` asks for it. To be called as early as may be."""
    if cfg.name != "none":
        store = Store.of(cfg)
        process.worker().prepare(store)


def summary_id(sweep: str) -> str:
    """The name of the run that sums up the sweep of that identity."""
    return f"{sweep[:_SWEEP_CHARACTERS]}-summary"


def ui(cfg: TrackingConfig, port: int | None = None) -> None:
    """Open the pages of the store, print the link that shows the pictures, and end with Ctrl-C.

    Raises ConfigError where there is no store, and RunError where MLflow's server does not start.
    """
    if cfg.name == "none":
        raise ConfigError("tracking=none keeps no runs to show; use tracking=mlflow")
    page.serve(Store.of(cfg), port, lambda link: print(link, flush=True))


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
        """Add a line to the journal; see diffuse.tracking.delivery for what it may hold."""
        if self._entry is None:
            return
        try:
            self._entry.append({"time": _now(), **event})
        except OSError as error:
            self._tracker.cannot_write(error)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.write({"tags": dict(tags)})

    def log_steps(self, seconds: Sequence[float]) -> None:
        self.write({"metrics": [("time/step_s", float(value), step) for step, value in enumerate(seconds)]})

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        self.write({"metrics": [(key, float(value), 0) for key, value in metrics.items() if value is not None]})

    def log_media(self, path: Path, step: int = 0) -> None:
        self._log_picture(path, step)

    def log_sheet(self, path: Path, step: int = 0) -> None:
        self._log_picture(path, step, key=page.SHEET_KEY)

    def _log_picture(self, path: Path, step: int, **key: str) -> None:
        path = Path(path).absolute()
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            self._tracker.cannot_write(error)
        else:
            self.write({"media": [{"path": str(path), "step": step, "sha256": digest, **key}]})

    def log_text(self, name: str, text: str) -> None:
        self.write({"texts": {name: text}})

    def log_files(self, name: str, files: Sequence[Path]) -> None:
        self.write({"files": {name: [str(Path(file).absolute()) for file in files]}})

    def finish(self, error: str | None = None, *, interrupted: bool = False) -> None:
        status = "KILLED" if interrupted else "FAILED" if error is not None else "FINISHED"
        tags = {} if error is None else {"diffuse.error": redact(error)}
        self.write({"tags": tags, "end": status})
        self.finished = True
        self._tracker.wake()


class JournaledTracker(Tracker):
    """Keeps runs in the journal, and has a worker process bring them to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._worker = process.worker()
        self._spool: Spool | None = None
        self._unwritten: OSError | None = None  # why the journal lacks something
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
        spool = self._open()
        run = JournaledRun(self, spool.entry() if spool else None, id)
        self._runs = [earlier for earlier in self._runs if not earlier.finished] + [run]
        own = {"mlflow.source.name": "diffuse", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
        begin = {"id": id, "name": name, "time": _now(), "again": again}
        event = {"begin": begin, "params": dict(params), "tags": {**own, **tags}, "texts": dict(artifacts)}
        run.write(event | ({"weights": dict(weights)} if weights else {}))
        return run

    def close(self) -> list[str]:
        for run in self._runs:
            if not run.finished:
                run.finish("the program ended before the run did")
        if journal.spools(self._store.journal):
            self._open()  # what others left is delivered too
        spool = self._spool
        if spool is None:
            return self._cannot()
        warnings = self._worker.close(spool.folder)
        spool.close()
        if left := len(journal.runs(spool.folder)):
            runs = "1 run waits" if left == 1 else f"{left} runs wait"
            first = warnings[0] if warnings else f"tracking.uri={self._store.shown}: not delivered"
            waiting = f"{runs} in {self._store.journal} for: {self._store.sync}"
            warnings[:1] = [f"{first}; pictures are saved all the same, and {waiting}"]
        return warnings + self._cannot()

    def run_id(self, id: str) -> str | None:
        """MLflow's id of the run of that name, once it is in the store."""
        return self._worker.run_id(id)

    def wake(self) -> None:
        """A run has ended, and can be delivered."""
        self._worker.wake()

    def cannot_write(self, error: OSError) -> None:
        """The journal lacks something of a run, for that reason."""
        self._unwritten = self._unwritten or error

    def _cannot(self) -> list[str]:
        if self._unwritten is None:
            return []
        reason = f"{self._unwritten.filename or self._store.journal}: {self._unwritten.strerror}"
        shown = f"tracking.uri={self._store.shown}"
        return [f"{shown}: {reason}; pictures are saved all the same, and what could not be written is not tracked"]

    def _open(self) -> Spool | None:
        """The place of this tracker's runs in the journal, if it can be had."""
        if self._spool is None:
            try:
                self._spool = Spool(self._store)
            except OSError as error:
                self.cannot_write(error)
                return None
            self._worker.open(self._spool.folder, self._store)
        return self._spool


def _now() -> int:
    return time.time_ns() // 1_000_000  # milliseconds, as MLflow counts


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"
