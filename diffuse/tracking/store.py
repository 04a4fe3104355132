"""The address of a tracking store: an SQLite file, a database or a server. Nothing is opened here."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.record.values import redact
from diffuse.schema import TrackingConfig

_JOURNAL = "mlflow-pending"
DEFAULT_JOURNAL = f"outputs/{_JOURNAL}"


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps runs. `file` is the database of an SQLite store, and None where it is another's."""

    uri: str
    experiment: str
    artifacts: str | None  # where a new experiment keeps its files; None leaves it to the server
    journal: Path  # where runs wait until they are there
    file: Path | None = None

    @classmethod
    def of(cls, cfg: TrackingConfig) -> Store:
        """The store of `cfg`, its relative paths made absolute.

        A null artifact location and a null journal lie beside the database, or the journal where that of the default
        store would.

        Raises ConfigError for a `tracking.uri` that can hold no runs.
        """
        uri = str(cfg.uri or "").strip()
        if match := re.fullmatch(r"(sqlite(?:\+\w+)?):///(?!:memory:)([^?]+)(\?.*)?", uri):
            file = _path(match[2])
            location = _absolute(cfg.artifact_location) or (file.parent / "mlartifacts").as_uri()
            journal = _path(cfg.journal) if cfg.journal else file.parent / _JOURNAL
            return cls(f"{match[1]}:///{file}{match[3] or ''}", cfg.experiment, location, journal, file)
        scheme = urllib.parse.urlsplit(uri).scheme
        if uri != "databricks" and ("://" not in uri or scheme == "file" or scheme.startswith("sqlite")):
            raise ConfigError(
                f"tracking.uri={redact(uri)} can hold no runs; use sqlite:///FILE, http://SERVER:PORT, or tracking=none"
            )
        return cls(uri, cfg.experiment, _absolute(cfg.artifact_location), _path(cfg.journal or DEFAULT_JOURNAL))

    def as_json(self) -> dict[str, str | None]:
        """The address as plain values, password included; `of_json` makes it a store again."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Store:
        """What `as_json` gave. Raises TypeError for anything else."""
        paths = {name: Path(values[name]) for name in ("journal", "file") if values.get(name) is not None}
        return cls(**{**values, **paths})

    @property
    def is_server(self) -> bool:
        """Whether an MLflow server answers there, rather than a database."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def sync(self) -> str:
        """The command that delivers what waits in the journal."""
        default = self.journal == _path(DEFAULT_JOURNAL)
        return "diffuse sync" if default else f"diffuse sync tracking.journal={self.journal}"

    @property
    def shown(self) -> str:
        """The address without secrets."""
        return str(redact(self.uri))


def _absolute(location: str | None) -> str | None:
    if not location or "://" in location:
        return location or None
    return _path(location).as_uri()


def _path(path: str) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))
