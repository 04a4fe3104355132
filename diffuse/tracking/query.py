"""What a tracking store knows of runs: for those who compare them, whose reports it takes, and who make one again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError, RunError
from diffuse.schema import TrackingConfig
from diffuse.tracking import failures, mlflow_store
from diffuse.tracking.mlflow_store import RUN_TAG
from diffuse.tracking.store import Store

_PAGE = 1000  # runs that are asked for at once
_MEDIA = "media"


@dataclass(frozen=True)
class FoundRun:
    """A run as the store has it. `fetch` gives its files."""

    run_id: str  # MLflow's
    name: str
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    params: Mapping[str, str]
    metrics: Mapping[str, float]  # the last of each
    tags: Mapping[str, str]
    artifact_uri: str


def add_files(cfg: TrackingConfig, name: str, below: str, files: Sequence[Path]) -> None:
    """Lays `files` below `below` in the run `name`, in the place of what was there. Nothing else of it changes.

    Nothing happens where nothing is tracked, or the store or the run is not there. Raises ConfigError for an address
    that can hold no runs, RunError for a store that cannot be reached, and what MLflow raises where it takes no files.
    """
    if cfg.name == "none":
        return
    store = Store.of(cfg)
    try:
        run = StoreReader(cfg).run(name)
    except ConfigError:
        return
    mlflow_store.replace_files(mlflow_store.repository(run.artifact_uri, store.uri), below, files)


class StoreReader:
    """An open tracking store, to be read."""

    def __init__(self, cfg: TrackingConfig) -> None:
        """Opens the store.

        Raises:
            ConfigError: nothing is tracked, the address can hold no runs, or nothing is recorded there yet.
            RunError: the store cannot be reached.
        """
        if cfg.name == "none":
            raise ConfigError("tracking=none keeps no runs to look for; use tracking=mlflow")
        self._store = Store.of(cfg)
        if self._store.file and not self._store.file.exists():
            raise ConfigError(f"tracking.uri={self._store.shown}: nothing is recorded there yet")
        try:
            if self._store.file is None:
                failures.knock(self._store.uri)
            self._client = mlflow_store.client(self._store.uri)
        except Exception as error:
            raise self._failed(error) from error

    def run(self, name: str) -> FoundRun:
        """The run whose id, or whose `diffuse.run`, is `name`, in whatever experiment.

        Raises ConfigError where there is none.
        """
        try:
            return _found(self._client.get_run(name))
        except Exception as error:
            if not failures.is_refusal(error):
                raise self._failed(error) from error
        for run in self._search(f"tags.`{RUN_TAG}` = {_quoted(name)}", everywhere=True):
            return run
        raise ConfigError(f"there is no run {name} in {self._store.shown}; diffuse ui shows those there are")

    def sweep(self, identity: str) -> list[FoundRun]:
        """The runs of the jobs of a sweep, the oldest first; `identity` may be its beginning.

        Raises ConfigError where there are none, or the beginning is that of several sweeps.
        """
        pattern = _quoted(f"{identity}%")
        found = [
            run
            for run in self._search(f"tags.`diffuse.sweep` LIKE {pattern}", everywhere=True)
            if "diffuse.kind" not in run.tags
        ]
        identities = {run.tags["diffuse.sweep"] for run in found}
        if len(identities) > 1:
            raise ConfigError(f"{identity} begins the names of {len(identities)} sweeps; write more of it")
        if not found:
            raise ConfigError(f"there is no sweep {identity} in {self._store.shown}")
        return found

    def experiment(self, name: str) -> list[FoundRun]:
        """The runs of an experiment, the oldest first, those that sum sweeps up left out.

        Raises ConfigError where there is no such experiment.
        """
        found = self._ask(lambda: self._client.get_experiment_by_name(name))
        if found is None:
            raise ConfigError(f"there is no experiment {name} in {self._store.shown}")
        runs = self._search("", experiments=[found.experiment_id])
        return [run for run in runs if "diffuse.kind" not in run.tags]

    def record(self, run: FoundRun, folder: Path) -> dict[str, Any]:
        """The run's record.json, fetched into `folder`.

        Raises ConfigError where the run has none.
        """
        found = self.fetch(run, "record.json", folder)
        if not found:
            raise ConfigError(f"the run {run.run_id} has no record.json; it is not one of diffuse's")
        try:
            record: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"the record.json of the run {run.run_id} is damaged: {error}") from error
        return record

    def media(self, run: FoundRun, folder: Path) -> list[Path]:
        """The pictures of a run as they were saved, fetched into `folder`, in the order of their names."""
        return sorted(path for path in self.fetch(run, _MEDIA, folder) if path.is_file())

    def fetch(self, run: FoundRun, path: str, folder: Path) -> list[Path]:
        """A file of a run, or all those below a path, in `folder`; none where the run has none of that name."""
        parent, _, name = path.rpartition("/")
        listed = self._ask(lambda: self._client.list_artifacts(run.run_id, parent or None))
        if name not in {Path(entry.path).name for entry in listed}:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        local = Path(self._ask(lambda: self._client.download_artifacts(run.run_id, path, str(folder))))
        return sorted(local.rglob("*")) if local.is_dir() else [local]

    def _search(
        self, query: str, *, experiments: list[str] | None = None, everywhere: bool = False
    ) -> Iterator[FoundRun]:
        """Runs page by page, the oldest first."""
        if everywhere:
            experiments = [found.experiment_id for found in self._ask(self._client.search_experiments)]
        token = None
        while True:
            page = self._ask(
                lambda token=token: self._client.search_runs(
                    experiments, query, max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
                )
            )
            yield from (_found(run) for run in page)
            token = page.token
            if not token:
                return

    def _ask(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RunError:
        return RunError(f"tracking.uri={self._store.shown}: {failures.why(error)}")


def _found(run: Any) -> FoundRun:
    info, data = run.info, run.data
    known = dict(data.params), dict(data.metrics), dict(data.tags)
    return FoundRun(info.run_id, info.run_name, info.status, *known, info.artifact_uri)


def _quoted(text: str) -> str:
    """A text in MLflow's query language, which knows no escapes."""
    if '"' in text and "'" in text:
        raise ConfigError(f"there is no run or sweep of the name {text}")
    return f'"{text}"' if "'" in text else f"'{text}'"
