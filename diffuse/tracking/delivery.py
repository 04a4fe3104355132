"""Delivery of runs from the journal to the store: each is there once, and what cannot be delivered stays.

A run that may be in the store already, because its delivery was begun before, is looked up by its `diffuse.run`.
Metrics are sent with the time at which they were logged, files under names that follow from the run; so all of it may
be sent again. A run that takes longer than a moment is visible in the store while it goes on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffuse.tracking import failures, images, journal
from diffuse.tracking.journal import Claim
from diffuse.tracking.mlflow_store import Connection, StoredRun, UnusableExperiment
from diffuse.tracking.moved import moved_file
from diffuse.tracking.store import Store
from diffuse.tracking.tags import ERROR_TAG, LOGGED_IMAGES, RUN_TAG
from diffuse.tracking.upgrade import take_notes
from diffuse.tracking.values import Metric

_LIVE_SECONDS = 2.0  # new data of a run waits this long for more of it
_MAX_NAMED = 10  # runs in one line
_NAME_CHARACTERS = 60  # of each
_KILLED = "the process ended before the run did"


@dataclass
class PendingData:
    """The data of a run that is not in the store yet."""

    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    media: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)  # by the name to put them below
    weights: dict[str, Any] | None = None
    end: tuple[str, int] | None = None  # status and time
    read_time: float | None = None  # of the first of it, on the monotonic clock


class PendingRun:
    """A run in a spool, and how much of it is in the store."""

    def __init__(self, file: Path, *, may_be_stored: bool) -> None:
        self.file = file
        self.begin: dict[str, Any] = {}  # its first event, empty until that is read
        self.stored: StoredRun | None = None
        self.data = PendingData()
        self.may_be_stored = may_be_stored
        self.failed = False  # a delivery of it failed for its own fault
        self.unreadable: OSError | None = None  # why its file cannot be read
        self.killed = False  # its process ended before it
        self.sample_count = 0  # of the system metrics
        self._offset = 0

    def read(self) -> int:
        """Reads what was added to its file, and returns how many lines of it are damaged. Raises OSError."""
        events, self._offset, damaged = journal.read_events(self.file, self._offset)
        data = self.data
        if events and data.read_time is None:
            data.read_time = time.monotonic()
        for event in events:
            if "begin" in event:
                self.begin = event["begin"]
                self.may_be_stored = self.may_be_stored or self.begin["again"]
                data.params |= event.get("params", {})
                data.tags[RUN_TAG] = self.begin["id"]
            data.tags |= event.get("tags", {})
            data.metrics += [(key, value, event["time"], step) for key, value, step in event.get("metrics", ())]
            data.texts |= event.get("texts", {})
            if media := event.get("media"):
                data.media += media
                data.tags |= LOGGED_IMAGES
            data.files |= event.get("files", {})
            data.weights = event.get("weights", data.weights)
            if "end" in event:
                data.end = (event["end"], event["time"])
        return damaged

    @property
    def is_empty(self) -> bool:
        """True if its file has no whole line."""
        return self._offset == 0

    def is_due(self, now: float) -> bool:
        """Returns whether to send the data now: the run has ended, or the data has waited long enough."""
        data = self.data
        if data.read_time is None:
            return bool(data.metrics)  # of the system
        return data.end is not None or now - data.read_time >= _LIVE_SECONDS

    def abandon(self) -> None:
        """Marks the run as killed, if it has not ended: its process is gone. It ended when its file last changed."""
        if self.data.end is None:
            self.killed = True
            self.data.tags.setdefault(ERROR_TAG, _KILLED)
            self.data.end = ("KILLED", max(self.begin.get("time", 0), int(self.file.stat().st_mtime * 1000)))


class RefusedName(ValueError):
    """A store takes no run of this name."""


class SpoolDelivery:
    """The delivery of one spool, which this process has claimed."""

    def __init__(
        self,
        claim: Claim,
        store: Store,
        *,
        orphaned: bool,
        warn: Callable[[str, Exception], None],
        run_name: str | None = None,
    ) -> None:
        """`orphaned`: its writer is gone, and others may have tried to deliver it. See Deliverer.warn for `warn`.

        `run_name` is for runs whose own name the store refuses.
        """
        self.store = store
        self.run_name = run_name
        self.claim = claim
        self.runs: dict[Path, PendingRun] = {}
        self._orphaned = orphaned
        self._warn = warn

    def read(self) -> None:
        """Reads what was added to the spool."""
        for file in journal.run_files(self.claim.spool):
            run = self.runs.setdefault(file, PendingRun(file, may_be_stored=self._orphaned))
            if run.unreadable is not None:
                continue
            try:
                if damaged := run.read():
                    lines = "a line" if damaged == 1 else f"{damaged} lines"
                    self._warn("", ValueError(f"{lines} of {file} cannot be read, and is left out of its run"))
            except OSError as error:
                run.unreadable = error

    def send(self, run: PendingRun, connection: Connection) -> StoredRun:
        """Sends the pending data of `run`, and returns its place in the store. A run that has ended leaves the spool.

        Raises what MLflow raises. Then it may be called again.
        """
        data, tags = run.data, run.data.tags
        if run.stored is None:
            run.stored, is_new = self._enter(run, connection)
            tags = {} if is_new else tags
        stored = run.stored
        self._log(connection, stored, data, tags)
        if weights := data.weights:
            self._try(lambda: connection.log_weights(stored, weights))
        if data.end:
            status, end_time = data.end
            self._try(lambda: connection.end(stored, status, end_time))
        self._send_files(data, stored, connection)
        if data.end:
            run.file.unlink(missing_ok=True)
            self.runs.pop(run.file, None)
        run.data = PendingData()
        return stored

    def _enter(self, run: PendingRun, connection: Connection) -> tuple[StoredRun, bool]:
        """Returns the run in the store, and whether it is new and has its tags."""
        begin, experiment = run.begin, connection.experiment(self.store)
        if run.may_be_stored and (stored := connection.find(experiment, begin["id"])):
            connection.reopen(stored)
            return stored, False
        run.may_be_stored = True  # should the answer get lost
        try:
            return connection.create(experiment, begin["name"], begin["time"], run.data.tags), True
        except Exception as error:
            if not failures.is_refusal(error, of_value=True):
                raise
        # A tag may be why; then they are added one by one.
        own = {RUN_TAG: begin["id"]}
        names = [begin["name"], *([] if self.run_name in (None, begin["name"]) else [str(self.run_name)])]
        refusals: list[str] = []
        for name in names:
            try:
                stored = connection.create(experiment, name, begin["time"], own)
            except Exception as error:
                if not failures.is_refusal(error, of_value=True):
                    raise
                refusals.append(failures.error_line(error))
                continue
            if refusals:
                label = run_label(begin["name"])
                self._warn("", ValueError(f"the run {label} is now named {name}: {refusals[0]}"))
            return stored, False
        connection.check_experiment(self.store)  # which may have been deleted meanwhile
        raise RefusedName(refusals[-1])

    def _log(self, connection: Connection, stored: StoredRun, data: PendingData, tags: Mapping[str, str]) -> None:
        """Sends numbers and texts: at once, or one by one where the store refuses one of them, which is left out."""
        try:
            connection.log(stored, data.params, tags, data.metrics)
            return
        except Exception as error:
            if not failures.is_refusal(error, of_value=True):
                raise
        for key, param in data.params.items():
            self._try(partial(connection.log, stored, {key: param}), f"the parameter {key} is left out: ")
        for key, tag in tags.items():
            self._try(partial(connection.log, stored, None, {key: tag}), f"the tag {key} is left out: ")
        for key in dict.fromkeys(metric[0] for metric in data.metrics):
            points = [metric for metric in data.metrics if metric[0] == key]
            self._try(partial(connection.log, stored, None, None, points), f"the metric {key} is left out: ")

    def _send_files(self, data: PendingData, stored: StoredRun, connection: Connection) -> None:
        for name, paths in data.files.items():
            files = [self._find(path) for path in paths]
            for file in (file for file in files if not file.is_file()):
                self._warn("", FileNotFoundError(f"{file} is gone, and is left out of its run"))
            if files := [file for file in files if file.is_file()]:
                self._try(partial(connection.replace_files, stored, name, files))
        if not (data.texts or data.media):
            return
        with tempfile.TemporaryDirectory(prefix="diffuse-") as name:
            folder = Path(name)
            for path, text in data.texts.items():
                try:
                    (folder / path).write_text(text, encoding="utf-8", errors="backslashreplace")
                except (OSError, ValueError) as error:
                    self._warn("", error)
            for media in data.media:
                try:
                    images.stage_media(self._find(media["path"]), media, stored.run_id, stored.start_time, folder)
                except (OSError, ValueError) as error:
                    self._warn("", error)
            self._try(lambda: connection.log_folder(stored, folder))

    def _find(self, path: str) -> Path:
        """Returns where a file is that a run names: the outputs folder may have been moved since."""
        spool = self.claim.spool
        return Path(path) if os.path.exists(path) else moved_file(Path(path), journal.store_values(spool), spool.parent)

    def _try(self, call: Callable[[], None], prefix: str = "") -> None:
        """Makes a call. What the store refuses for good becomes a warning, and the rest of the run goes on.

        Args:
            prefix: says of a single value that it is left out.
        """
        try:
            call()
        except Exception as error:
            if not failures.is_refusal(error, of_value=bool(prefix)):
                raise
            self._warn(prefix or "refused: ", error)


class Deliverer:
    """Delivers spools to one address, as long as it answers."""

    def __init__(self, store: Store, on_stored: Callable[[str, str], None]) -> None:
        """`on_stored` is called for each run that is in the store, with its `diffuse.run` and MLflow's id."""
        self.store = store
        self._warnings: dict[str, str] = {}  # reason -> the first line with it
        self._left: dict[tuple[str, str], list[str]] = {}  # reason and remedy -> the runs that wait for it
        self._on_stored = on_stored
        self._connection: Connection | None = None

    def deliver(self, spool: SpoolDelivery, *, everything: bool = False) -> list[PendingRun]:
        """Sends the runs of a spool that are due, or all of them, and returns those that have ended.

        Raises what MLflow raises where the store cannot be reached, or cannot be used, and UnusableExperiment where
        the runs of this spool have no place in it. What is wrong with one run alone becomes a warning, and keeps it in
        the spool.
        """
        spool.read()
        now = time.monotonic()
        due = [
            run for run in spool.runs.values() if not run.failed and (everything or run.unreadable or run.is_due(now))
        ]
        for run in [run for run in due if not run.begin]:
            if run.unreadable is not None:
                self._leave(run, f"{run.file} cannot be read: {run.unreadable.strerror}", "make it readable")
            else:
                self._leave(run, f"{run.file} is damaged, and is no run", "remove it")
            run.failed = True
            due.remove(run)
        if not due:
            return []
        if self._connection is None:
            self._connection = Connection(self.store)
        self._connection.experiment(spool.store)  # raises where no run of the spool can be stored
        return [run for run in due if self._send(spool, run, self._connection)]

    def _send(self, spool: SpoolDelivery, run: PendingRun, connection: Connection) -> bool:
        """Sends a run, and returns whether it has ended and is delivered."""
        has_ended = run.data.end is not None
        try:
            stored = spool.send(run, connection)
        except Exception as error:
            if failures.is_unavailable(error):
                raise
            if failures.is_refusal(error):
                connection.check_experiment(spool.store)  # which may have been deleted meanwhile
            run.failed = True
            sync = spool.store.sync_command
            again = f"{sync} tracking.run_name=NAME names it anew"
            remedy = again if isinstance(error, RefusedName) else failures.remedy(error, sync)
            self._leave(run, failures.error_line(error), remedy)
            return False
        self._on_stored(run.begin["id"], stored.run_id)
        return has_ended

    def warn(self, prefix: str, error: Exception) -> None:
        """Keeps one line for each reason."""
        line = prefix + failures.error_line(error)
        self._warnings.setdefault(line, self._line(line))

    def take_warnings(self) -> list[str]:
        """Returns a line for each thing that went wrong since the last call, and what to do about it."""
        lines = [*self._warnings.values(), *(self._line(note) for note in take_notes())]
        for (reason, remedy), names in self._left.items():
            more = len(names) - _MAX_NAMED
            listed = ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
            runs = "the run" if len(names) == 1 else "the runs"
            lines.append(self._line(f"could not deliver {runs} {listed}: {reason}; {remedy}"))
        self._warnings, self._left = {}, {}
        return lines

    def _leave(self, run: PendingRun, reason: str, remedy: str) -> None:
        """Keeps why a run waits on, and what to do."""
        self._left.setdefault((reason, remedy), []).append(run_label(run.begin.get("name") or run.file.name))

    def _line(self, text: str) -> str:
        return f"{self.store.setting}: {' '.join(text.split())}"


def run_label(name: str) -> str:
    """Returns how a message calls a run whose name may be long."""
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 3]}..."


def deliver_orphan(
    claim: Claim,
    deliverer: Deliverer,
    store: Store,
    substitute: Store | None = None,
    run_name: str | None = None,
) -> list[PendingRun]:
    """Delivers all of a claimed spool whose writer is gone, and returns those runs; see Deliverer.deliver.

    Args:
        substitute: has the experiment that takes the runs whose own takes none.
        run_name: of the runs whose own name the store refuses.
    """
    spool = SpoolDelivery(claim, store, orphaned=True, warn=deliverer.warn, run_name=run_name)
    spool.read()
    for run in list(spool.runs.values()):
        run.abandon()
        if run.is_empty and run.unreadable is None:  # a full disk, or a kill, during the first line
            run.file.unlink(missing_ok=True)
            del spool.runs[run.file]
    try:
        return deliverer.deliver(spool, everything=True)
    except UnusableExperiment as error:
        if substitute is None:
            raise
        name, number = substitute.experiment, substitute.experiment_id
        if (name, number) == (spool.store.experiment, spool.store.experiment_id):
            raise
        spool.store = replace(spool.store, experiment=name, experiment_id=number)
        delivered = deliverer.deliver(spool, everything=True)
        if delivered:
            other = name or f"with the id {number}"
            count = "1 run is" if len(delivered) == 1 else f"{len(delivered)} runs are"
            deliverer.warn(f"{count} now in the experiment {other}: ", ValueError(error.reason))
        return delivered
