"""From the journal to the store: what is delivered twice is there once, and what cannot be delivered stays.

A run whose `diffuse.run` may be in the store already, because its delivery was begun before, is looked for first.
Metrics go with the time at which they were logged, files under names that follow from the run; so all of it may be
sent again. A run that ends soon goes as a whole; one that takes longer is visible while it goes on.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuse.tracking import failures, journal, mlflow_store, page
from diffuse.tracking.journal import Claim
from diffuse.tracking.mlflow_store import Connection, Stored
from diffuse.tracking.rows import Ended
from diffuse.tracking.store import Store
from diffuse.tracking.values import Metric

_LIVE_SECONDS = 2.0  # what is logged waits this long for more of its run
_TOGETHER = 20  # runs in one transaction, during which nobody else can write
_KILLED = "the process ended before the run did"


@dataclass
class Waiting:
    """What is known of a run and not yet in the store."""

    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    media: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)  # by the name that they go below
    weights: dict[str, Any] | None = None
    end: tuple[str, int] | None = None  # status and time
    since: float | None = None  # when the first of it was read


class Run:
    """A run in a spool, and how much of it is in the store."""

    def __init__(self, file: Path, *, doubtful: bool) -> None:
        self.file = file
        self.begin: dict[str, Any] | None = None
        self.stored: Stored | None = None
        self.waiting = Waiting()
        self.doubtful = doubtful  # it may be in the store already
        self.failed = False  # something of it was tried in vain
        self.killed = False  # it ended without saying so
        self.samples = 0  # of what the machine did meanwhile
        self._offset = 0

    def read(self) -> None:
        """Takes in what its file has by now."""
        events, self._offset = journal.read(self.file, self._offset)
        waiting = self.waiting
        if events and waiting.since is None:
            waiting.since = time.monotonic()
        for event in events:
            if "begin" in event:
                self.begin = event["begin"]
                self.doubtful = self.doubtful or event["begin"]["again"]
                waiting.params |= event["params"]
            waiting.tags |= event.get("tags", {})
            waiting.metrics += [(key, value, event["time"], step) for key, value, step in event.get("metrics", ())]
            waiting.texts |= event.get("texts", {})
            if media := event.get("media"):
                waiting.media += media
                waiting.tags |= page.LOGGED_IMAGES
            waiting.files |= event.get("files", {})
            waiting.weights = event.get("weights", waiting.weights)
            if "end" in event:
                waiting.end = (event["end"], event["time"])

    @property
    def tags(self) -> dict[str, str]:
        """Those of a new run."""
        return {mlflow_store.RUN_TAG: self.name, **self.waiting.tags}

    @property
    def name(self) -> str:
        """What its `diffuse.run` says."""
        assert self.begin is not None
        return str(self.begin["id"])

    @property
    def is_whole(self) -> bool:
        """Whether it has ended before anything of it was sent from here."""
        return self.stored is None and self.waiting.end is not None

    def ended(self) -> Ended:
        """All of it but its files, if it `is_whole`."""
        begin, waiting = self.begin, self.waiting
        assert begin is not None and waiting.end is not None
        status, end_time = waiting.end
        numbers = self.tags, waiting.params, waiting.metrics, waiting.weights
        return Ended(begin["name"], status, begin["time"], end_time, *numbers)

    @property
    def is_empty(self) -> bool:
        """Whether its file has no whole line."""
        return self._offset == 0

    def due(self, now: float) -> bool:
        """Whether what waits should go now: the run has ended, or it has waited long enough."""
        since = self.waiting.since
        if since is None:
            return bool(self.waiting.metrics)  # of the machine
        return self.waiting.end is not None or now - since >= _LIVE_SECONDS

    def give_up(self) -> None:
        """The process that wrote it is gone: it ended when it was last heard of."""
        if self.waiting.end is None:
            self.killed = True
            self.waiting.tags.setdefault(mlflow_store.ERROR_TAG, _KILLED)
            began = self.begin["time"] if self.begin else 0
            self.waiting.end = ("KILLED", max(began, int(self.file.stat().st_mtime * 1000)))


class Spool:
    """The delivery of one spool, which this process has claimed."""

    def __init__(self, claim: Claim, store: Store, *, foreign: bool, warn: Callable[[str, Exception], None]) -> None:
        """`foreign`: others have perhaps tried before. `warn` is told what the store refuses, and what is amiss."""
        self.store = store
        self.claim = claim
        self.runs: dict[Path, Run] = {}
        self._foreign = foreign
        self._warn = warn

    def read(self) -> None:
        """Takes in what was added to the spool."""
        for file in journal.runs(self.claim.spool):
            run = self.runs.setdefault(file, Run(file, doubtful=self._foreign))
            run.read()

    def add(self, runs: Sequence[Run], connection: Connection) -> list[Run]:
        """Sends all but the files of those of `runs` that are new to the store and have ended, at once; gives them.

        Raises what SQLAlchemy raises, and ValueError for what is better sent one by one.
        """
        whole = [run for run in runs if run.is_whole]
        experiment = connection.experiment(self.store)
        there = connection.known(experiment, [run.name for run in whole if run.doubtful])
        new = [run for run in whole if run.name not in there]
        for run, stored in zip(new, connection.add(experiment, [run.ended() for run in new]), strict=True):
            run.stored, run.doubtful = stored, True
        return new

    def send_numbers(self, run: Run, connection: Connection) -> None:
        """Sends all that waits of `run` but its files, the run itself first. Raises as MLflow does."""
        waiting = run.waiting
        tags = waiting.tags
        if run.stored is None:
            run.stored, is_new = self._enter(run, connection)
            tags = {} if is_new else tags
        stored = run.stored
        self._try(lambda: connection.log(stored, waiting.params, tags, waiting.metrics))
        if weights := waiting.weights:
            self._try(lambda: connection.log_weights(stored, weights))
        if waiting.end:
            status, end_time = waiting.end
            self._try(lambda: connection.end(stored, status, end_time))

    def send_files(self, run: Run, connection: Connection) -> None:
        """Sends the files that wait of `run`, which is in the store; if it has ended, it then leaves the spool."""
        waiting = run.waiting
        assert run.stored is not None
        self._send_files(waiting, run.stored, connection)
        if waiting.end:
            run.file.unlink(missing_ok=True)
            self.runs.pop(run.file, None)
        run.waiting = Waiting()

    def _enter(self, run: Run, connection: Connection) -> tuple[Stored, bool]:
        """The run in the store: the one that is there, or a new one, which has its tags; and whether it is new."""
        begin = run.begin
        assert begin is not None
        experiment = connection.experiment(self.store)
        found = connection.find(experiment, run.name) if run.doubtful else None
        if found is not None:
            connection.reopen(found)
            return found, False
        run.doubtful = True  # should the answer get lost
        return connection.create(experiment, begin["name"], begin["time"], run.tags), True

    def _send_files(self, waiting: Waiting, stored: Stored, connection: Connection) -> None:
        for name, files in waiting.files.items():
            self._send_below(name, [Path(file) for file in files], stored, connection)
        if not (waiting.texts or waiting.media):
            return
        with tempfile.TemporaryDirectory(prefix="diffuse-") as place:
            folder = Path(place)
            for path, text in waiting.texts.items():
                (folder / path).write_text(text, encoding="utf-8", errors="backslashreplace")
            for media in waiting.media:
                try:
                    self._stage(media, stored, folder)
                except (OSError, ValueError) as error:
                    self._warn("", error)
            self._try(lambda: connection.log_folder(stored, folder))

    def _send_below(self, name: str, files: list[Path], stored: Stored, connection: Connection) -> None:
        there = [file for file in files if file.is_file()]
        for file in [file for file in files if file not in there]:
            self._warn("", FileNotFoundError(f"{file} is gone, and is left out of its run"))
        if there:
            self._try(lambda: mlflow_store.replace_files(connection.artifacts(stored), name, there))

    def _stage(self, media: Mapping[str, Any], stored: Stored, folder: Path) -> None:
        path = Path(media["path"])
        if hashlib.sha256(path.read_bytes()).hexdigest() != media["sha256"]:
            raise ValueError(f"{path} has changed since it was saved, and is left out of its run")
        if media.get("key") == page.SHEET_KEY:  # whose file goes with the report
            mlflow_store.stage_picture(path, media["step"], stored, folder, sheet=True)
            return
        (folder / "media").mkdir(exist_ok=True)
        os.symlink(path, folder / "media" / path.name)
        mlflow_store.stage_picture(path, media["step"], stored, folder)

    def _try(self, call: Callable[[], None]) -> None:
        """Makes a call; what the store will never take is told, and the rest of the run goes on."""
        try:
            call()
        except Exception as error:
            if not failures.is_refusal(error):
                raise
            self._warn("refused: ", error)


class Deliverer:
    """Delivers spools to one address, as long as it answers."""

    def __init__(self, store: Store, told: Callable[[str, str], None]) -> None:
        """`told` is told of each run that has come to the store: its name in the journal, and its id there."""
        self.store = store
        self.warnings: dict[str, str] = {}  # reason -> the line that told it first
        self._told = told
        self._connection: Connection | None = None

    def deliver(self, spool: Spool, *, everything: bool = False) -> list[Run]:
        """Sends the runs of a spool that are due, or all of them, and gives those that ended.

        Raises what MLflow raises where the store cannot be reached, or cannot be used. What is wrong with one run
        alone becomes a warning, and keeps it in the spool.
        """
        spool.read()
        now = time.monotonic()
        due = [run for run in spool.runs.values() if not run.failed and (everything or run.due(now))]
        for run in [run for run in due if run.begin is None]:
            self.warn("", ValueError(f"{run.file} is damaged, and is no run; remove it"))
            run.failed = True
            due.remove(run)
        if not due:
            return []
        connection = self._connected()
        connection.experiment(spool.store)
        together = _TOGETHER if connection.is_transactional else 1
        groups = [due[start : start + together] for start in range(0, len(due), together)]
        return [run for group in groups for run in self._send_group(spool, group, connection)]

    def _send_group(self, spool: Spool, runs: list[Run], connection: Connection) -> list[Run]:
        """Sends `runs` together, where that is one transaction; if one of them is not taken, each on its own."""
        if connection.is_transactional:
            try:
                return self._send(spool, runs, connection, at_once=True)
            except Exception as error:
                if failures.is_away(error):
                    raise
        return [ended for run in runs for ended in self._send_alone(spool, run, connection)]

    def _send_alone(self, spool: Spool, run: Run, connection: Connection) -> list[Run]:
        try:
            return self._send(spool, [run], connection)
        except Exception as error:
            if failures.is_away(error):
                raise
            run.failed = True
            self.warn("could not deliver a run: ", error)
            return []

    def _send(self, spool: Spool, runs: list[Run], connection: Connection, *, at_once: bool = False) -> list[Run]:
        """Sends what waits of `runs`, their numbers together, `at_once` where they allow it; gives those that ended."""
        before = [run.stored for run in runs]
        try:
            with connection.transaction():
                added = spool.add(runs, connection) if at_once else []
                for run in runs:
                    if run not in added:
                        spool.send_numbers(run, connection)
        except Exception:
            if connection.is_transactional:
                for run, stored in zip(runs, before, strict=True):
                    run.stored = stored
            raise
        ended = [run for run in runs if run.waiting.end]
        for run in runs:
            spool.send_files(run, connection)
            if run.begin and run.stored:
                self._told(run.begin["id"], run.stored.run_id)
        return ended

    def warn(self, what: str, error: Exception) -> None:
        """Keeps one line for each thing that went wrong."""
        reason = failures.why(error)
        self.warnings.setdefault(reason, f"tracking.uri={self.store.shown}: {' '.join((what + reason).split())}")

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.store)
        return self._connection


def deliver_orphan(claim: Claim, deliverer: Deliverer, store: Store) -> list[Run]:
    """Delivers all of a claimed spool whose writer is gone, and gives those runs; see Deliverer.deliver."""
    spool = Spool(claim, store, foreign=True, warn=deliverer.warn)
    spool.read()
    for run in list(spool.runs.values()):
        run.give_up()
        if run.is_empty:  # the disk was full, or the process killed, as it wrote the first line
            run.file.unlink(missing_ok=True)
            del spool.runs[run.file]
    return deliverer.deliver(spool, everything=True)
