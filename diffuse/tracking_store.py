"""The address of a tracking store: an SQLite file, a database or a server. Nothing is opened here."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from diffuse.errors import ConfigError
from diffuse.record import redact
from diffuse.request import TrackingConfig


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps runs. `file` is the database of an SQLite store, and None where it is another's."""

    uri: str
    experiment: str
    artifacts: str | None  # where a new experiment keeps its files; None leaves it to the server
    file: Path | None = None

    @classmethod
    def of(cls, cfg: TrackingConfig) -> Store:
        """The store of `cfg`, its relative paths made absolute. A null artifact location lies beside the database.

        Raises ConfigError for a `tracking.uri` that can hold no runs.
        """
        uri = str(cfg.uri or "").strip()
        if match := re.fullmatch(r"(sqlite(?:\+\w+)?):///(?!:memory:)([^?]+)(\?.*)?", uri):
            file = Path(os.path.abspath(Path(match[2]).expanduser()))
            location = _absolute(cfg.artifact_location) or (file.parent / "mlartifacts").as_uri()
            return cls(f"{match[1]}:///{file}{match[3] or ''}", cfg.experiment, location, file)
        scheme = urllib.parse.urlsplit(uri).scheme
        if uri != "databricks" and ("://" not in uri or scheme == "file" or scheme.startswith("sqlite")):
            raise ConfigError(
                f"tracking.uri={redact(uri)} can hold no runs; use sqlite:///FILE, http://SERVER:PORT, or tracking=none"
            )
        return cls(uri, cfg.experiment, _absolute(cfg.artifact_location))

    @property
    def is_server(self) -> bool:
        """Whether an MLflow server answers there, rather than a database."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The address without secrets."""
        return str(redact(self.uri))


def _absolute(location: str | None) -> str | None:
    if not location or "://" in location:
        return location or None
    return Path(os.path.abspath(Path(location).expanduser())).as_uri()
