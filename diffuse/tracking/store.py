"""The address of a tracking store: an SQLite file, a database or a server. Nothing is opened here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from diffuse.config.tracking_settings import tracking_settings
from diffuse.errors import ConfigError
from diffuse.paths import user_path
from diffuse.record.values import redact
from diffuse.schema import TrackingConfig
from diffuse.tracking.address import address_error
from diffuse.tracking.moved import ARTIFACTS, JOURNAL, repoint_artifacts
from diffuse.tracking.upgrade import upgrade_store

DEFAULT_JOURNAL = f"outputs/{JOURNAL}"


@dataclass(frozen=True)
class Store:
    """The address of a place where MLflow keeps runs."""

    uri: str
    experiment: str | None  # its name; None where it is known by its id alone
    artifacts: str | None  # where a new experiment keeps its files; None leaves it to the server
    journal: Path  # where runs wait until they are there
    file: Path | None = None  # of an SQLite store
    experiment_id: str | None = None  # of an experiment that is there; where it has a name too, both have to agree
    is_experiment_given: bool = False  # by the user; then it takes those runs too that have none any more
    uri_origin: str = "tracking.uri"  # how the user gave the address, for messages

    @classmethod
    def from_config(cls, cfg: TrackingConfig) -> Store:
        """Returns the store of `cfg`, with absolute paths.

        By default artifacts and journal lie beside an SQLite database; otherwise the server says where artifacts go,
        and the journal lies where that of the default store would.

        What `cfg` leaves open is for MLflow's environment variables to say; see `config.tracking_settings`.

        Raises ConfigError for an address that can hold no runs, or an experiment that MLflow would refuse.
        """
        settings = tracking_settings(cfg)
        for name in ("journal", "artifact_location"):
            if (value := getattr(cfg, name)) is not None and not value.strip():
                raise ConfigError(f"tracking.{name} is empty: give a folder, or leave it out")
        uri, location = settings.uri.strip(), _absolute(cfg.artifact_location)
        if match := re.fullmatch(r"(sqlite(?:\+\w+)?):///(?!:memory:)([^?]+)(\?.*)?", uri):
            file = _path(match[2], settings.origin("uri"))
            location = location or (file.parent / ARTIFACTS).as_uri()
            journal = _path(cfg.journal, "tracking.journal") if cfg.journal else file.parent / JOURNAL
            if os.path.exists(file) and not os.path.isfile(file):
                what = "a folder" if os.path.isdir(file) else "no file"
                raise ConfigError(
                    f"{settings.origin('uri')}={uri}: is {what}; give a file, such as sqlite:///FOLDER/mlflow.db"
                )
            _check_folder(file.parent, f"{settings.origin('uri')}={uri}")
            uri = f"{match[1]}:///{file}{match[3] or ''}"
        elif (reason := address_error(uri)) is not None:
            raise ConfigError(f"{settings.origin('uri')}={redact(uri)} {reason}")
        else:
            file, journal = None, _path(cfg.journal or DEFAULT_JOURNAL, "tracking.journal")
        _check_folder(journal, f"tracking.journal={cfg.journal or journal}")
        if location and location.startswith("file:///"):
            _check_folder(
                Path(url2pathname(location[7:])), f"tracking.artifact_location={cfg.artifact_location or location}"
            )
        return cls(
            uri,
            settings.experiment,
            location,
            journal,
            file,
            experiment_id=settings.experiment_id,
            is_experiment_given=settings.is_experiment_given,
            uri_origin=settings.origin("uri"),
        )

    def prepare_file(self) -> None:
        """Upgrades an SQLite file that is there, if it is an older MLflow's, and points its runs to moved files.

        Raises UnusableStore.
        """
        if self.file:
            upgrade_store(self.file)
            repoint_artifacts(self.file)

    def as_json(self) -> dict[str, str | bool | None]:
        """Returns the address as plain values, password included, for `from_json`."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        for name in ("experiment_id", "is_experiment_given"):
            if not values[name]:  # earlier versions do not know it
                del values[name]
        if values["uri_origin"] == "tracking.uri":
            del values["uri_origin"]
        return values

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
    def setting(self) -> str:
        """The address as messages name it: what gave it, and the address without secrets."""
        return f"{self.uri_origin}={self.public_uri}"

    @property
    def public_uri(self) -> str:
        """The address without secrets."""
        return str(redact(self.uri))


def _absolute(location: str | None) -> str | None:
    if not location or "://" in location:
        return location or None
    return _path(location, "tracking.artifact_location").as_uri()


def _check_folder(path: Path, setting: str) -> None:
    """Raises ConfigError where `path` cannot be a folder, because a file is in its place or above it."""
    for place in (path, *path.parents):
        if os.path.isdir(place):
            return
        if os.path.exists(place):
            raise ConfigError(f"{setting}: {place} is a file; give a folder, or a place in one")


def _path(path: str, setting: str = "tracking.uri") -> Path:
    return Path(os.path.abspath(user_path(path, setting)))
