"""Runs as a tracking store has them, for comparison and reproduction; and reports that are added to them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError, NotInStore, RunError
from diffuse.media.video import is_frames_folder
from diffuse.schema import TrackingConfig
from diffuse.tracking import failures, mlflow_store
from diffuse.tracking.store import Store
from diffuse.tracking.tags import KIND_TAG, RUN_TAG, SWEEP_TAG
from diffuse.tracking.upgrade import take_notes

log = logging.getLogger(__name__)
_PAGE_RUNS = 1000  # in one answer
_MEDIA = "media"


@dataclass(frozen=True)
class FoundRun:
    """A run as the store has it. StoreReader.fetch gets its files."""

    run_id: str  # MLflow's
    name: str
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    params: Mapping[str, str]
    metrics: Mapping[str, float]  # the last of each
    tags: Mapping[str, str]


def add_files(cfg: TrackingConfig, name: str, below: str, files: Sequence[Path]) -> None:
    """Puts `files` below `below` in the run `name`, in the place of those there. Nothing else of the run changes.

    Nothing happens where nothing is tracked, or the store or the run is not there. Raises ConfigError for an address
    that can hold no runs, RunError for a store that cannot be reached, and what MLflow raises where it takes no files.
    """
    if cfg.name == "none":
        return
    Store.from_config(cfg)  # raises for a wrong address; what is only missing is passed over
    try:
        reader = StoreReader(cfg)
        run = reader.run(name)
    except ConfigError:
        return
    reader.replace_files(run, below, files)


class StoreReader:
    """An open tracking store, for reading."""

    def __init__(self, cfg: TrackingConfig) -> None:
        """Opens the store.

        Raises:
            ConfigError: nothing is tracked, the address can hold no runs, or nothing is recorded there yet.
            RunError: the store cannot be reached.
        """
        if cfg.name == "none":
            raise ConfigError("tracking=none keeps no runs to look for; use tracking=mlflow")
        self._store = Store.from_config(cfg)
        if self._store.file and not self._store.file.exists():
            raise ConfigError(f"{self._store.setting}: nothing is recorded there yet")
        try:
            self._client = mlflow_store.open_store(self._store)
            for line in take_notes():
                log.warning("%s", line)
        except Exception as error:
            raise self._failed(error) from error

    def run(self, name: str) -> FoundRun:
        """Returns the run whose id, or whose `diffuse.run`, is `name`, in any experiment.

        Raises ConfigError where there is none.
        """
        try:
            return _run(self._client.get_run(name))
        except Exception as error:
            if not failures.is_refusal(error):
                raise self._failed(error) from error
        for run in self._search(f"tags.`{RUN_TAG}` = {_quoted(name)}"):
            return run
        raise NotInStore(f"there is no run {name} in {self._store.public_uri}; diffuse ui shows those there are")

    def sweep(self, identity: str) -> list[FoundRun]:
        """Returns the runs of the jobs of a sweep, the oldest first; `identity` may be its beginning.

        Raises ConfigError where there are none, or the beginning is that of several sweeps.
        """
        query = f"tags.`{SWEEP_TAG}` LIKE {_quoted(f'{identity}%')}"
        runs = [run for run in self._search(query) if KIND_TAG not in run.tags]
        identities = {run.tags[SWEEP_TAG] for run in runs}
        if len(identities) > 1:
            raise ConfigError(f"{identity} begins the names of {len(identities)} sweeps; write more of it")
        if not runs:
            raise NotInStore(f"there is no sweep {identity} in {self._store.public_uri}")
        return runs

    def experiment(self, name: str) -> list[FoundRun]:
        """Returns the runs of an experiment, the oldest first, without those that sum up sweeps.

        Raises ConfigError where there is no such experiment.
        """
        experiment = self._ask(lambda: self._client.get_experiment_by_name(name))
        if experiment is None:
            raise NotInStore(f"there is no experiment {name} in {self._store.public_uri}")
        runs = self._search("", experiments=[experiment.experiment_id])
        return [run for run in runs if KIND_TAG not in run.tags]

    def record(self, run: FoundRun, folder: Path) -> dict[str, Any]:
        """Returns the run's record.json, which is downloaded into `folder`.

        Raises ConfigError where the run has none.
        """
        files = self.fetch(run, "record.json", folder)
        if not files:
            raise ConfigError(f"the run {run.run_id} has no record.json; it is not one of diffuse's")
        try:
            record: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"the record.json of the run {run.run_id} is damaged: {error}") from error
        return record

    def media(self, run: FoundRun, folder: Path) -> list[Path]:
        """Downloads the media of a run into `folder`, and returns the files in the order of their names.

        A film that was saved as a folder of frames is that folder.
        """
        files = [path for path in self.fetch(run, _MEDIA, folder) if path.is_file()]
        return sorted({path.parent if is_frames_folder(path.parent) else path for path in files})

    def fetch(self, run: FoundRun, path: str, folder: Path) -> list[Path]:
        """Downloads a file of a run, or all below a path, into `folder`; returns them, or none if there are none."""
        parent, _, name = path.rpartition("/")
        entries = self._ask(lambda: self._client.list_artifacts(run.run_id, parent or None))
        if name not in {Path(entry.path).name for entry in entries}:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        local = Path(self._ask(lambda: self._client.download_artifacts(run.run_id, path, str(folder))))
        return sorted(local.rglob("*")) if local.is_dir() else [local]

    def replace_files(self, run: FoundRun, name: str, files: Sequence[Path]) -> None:
        """Puts `files` below `name` in the run, in the place of those there. Raises what MLflow raises."""
        mlflow_store.replace_files(self._client, run.run_id, name, files)

    def _search(self, query: str, experiments: list[str] | None = None) -> Iterator[FoundRun]:
        """Yields runs of `experiments`, by default of all, the oldest first."""
        if experiments is None:
            experiments = [each.experiment_id for each in self._ask(self._client.search_experiments)]
        token = None
        while True:
            page = self._ask(
                lambda token=token: self._client.search_runs(
                    experiments, query, max_results=_PAGE_RUNS, order_by=["attributes.start_time ASC"], page_token=token
                )
            )
            yield from (_run(run) for run in page)
            token = page.token
            if not token:
                return

    def _ask(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RunError:
        return RunError(f"{self._store.setting}: {failures.error_line(error)}")


def _run(run: Any) -> FoundRun:
    info, data = run.info, run.data
    return FoundRun(info.run_id, info.run_name, info.status, dict(data.params), dict(data.metrics), dict(data.tags))


def _quoted(text: str) -> str:
    """Returns a text in MLflow's query language, which has no escapes."""
    if '"' in text and "'" in text:
        raise NotInStore(f"there is no run or sweep of the name {text}")
    return f'"{text}"' if "'" in text else f"'{text}'"
