"""The address of a tracking store: an SQLite file, a database or a server. Nothing is opened here."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.paths import user_path
from diffuse.record.values import redact
from diffuse.schema import TrackingConfig
from diffuse.tracking.moved import ARTIFACTS, JOURNAL

DEFAULT_JOURNAL = f"outputs/{JOURNAL}"


@dataclass(frozen=True)
class Store:
    """The address of a place where MLflow keeps runs."""

    uri: str
    experiment: str
    artifacts: str | None  # where a new experiment keeps its files; None leaves it to the server
    journal: Path  # where runs wait until they are there
    file: Path | None = None  # of an SQLite store

    @classmethod
    def from_config(cls, cfg: TrackingConfig) -> Store:
        """Returns the store of `cfg`, with absolute paths.

        By default artifacts and journal lie beside an SQLite database; otherwise the server says where artifacts go,
        and the journal lies where that of the default store would.

        Raises ConfigError for a `tracking.uri` that can hold no runs.
        """
        uri = str(cfg.uri or "").strip()
        if match := re.fullmatch(r"(sqlite(?:\+\w+)?):///(?!:memory:)([^?]+)(\?.*)?", uri):
            file = _path(match[2])
            location = _absolute(cfg.artifact_location) or (file.parent / ARTIFACTS).as_uri()
            journal = _path(cfg.journal, "tracking.journal") if cfg.journal else file.parent / JOURNAL
            return cls(f"{match[1]}:///{file}{match[3] or ''}", cfg.experiment, location, journal, file)
        scheme = urllib.parse.urlsplit(uri).scheme
        if uri != "databricks" and ("://" not in uri or scheme == "file" or scheme.startswith("sqlite")):
            raise ConfigError(
                f"tracking.uri={redact(uri)} can hold no runs; use sqlite:///FILE, http://SERVER:PORT, or tracking=none"
            )
        return cls(
            uri,
            cfg.experiment,
            _absolute(cfg.artifact_location),
            _path(cfg.journal or DEFAULT_JOURNAL, "tracking.journal"),
        )

    def as_json(self) -> dict[str, str | None]:
        """Returns the address as plain values, password included, for `from_json`."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Store:
        """Returns the store of these values. Raises TypeError where they are not those of `as_json`."""
        paths = {name: Path(values[name]) for name in ("journal", "file") if values.get(name) is not None}
        return cls(**{**values, **paths})

    @property
    def is_server(self) -> bool:
        """True if the address is an MLflow server's, and not a database."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def sync_command(self) -> str:
        """The command that delivers what waits in the journal."""
        default = self.journal == _path(DEFAULT_JOURNAL)
        return "diffuse sync" if default else f"diffuse sync tracking.journal={self.journal}"

    @property
    def public_uri(self) -> str:
        """The address without secrets."""
        return str(redact(self.uri))


def _absolute(location: str | None) -> str | None:
    if not location or "://" in location:
        return location or None
    return _path(location, "tracking.artifact_location").as_uri()


def _path(path: str, setting: str = "tracking.uri") -> Path:
    return Path(os.path.abspath(user_path(path, setting)))
