"""Checks addresses: whether MLflow can keep runs there. MLflow is not imported for it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import urllib.parse
from configparser import ConfigParser
from configparser import Error as ParseError

from diffuse.paths import user_path

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # MLflow's own
_PLUGINS = "mlflow.tracking_store"  # the entry points of what is installed beside it
_MEANT = {"postgres": "postgresql", "mariadb": "mysql", "sqlite3": "sqlite"}
_USE = "use sqlite:///FILE, http://SERVER:PORT, or tracking=none"


def sqlalchemy_uri(uri: str) -> str:
    """Returns an address as SQLAlchemy opens it, which may decode `%20` in the path of an SQLite file."""
    scheme, separator, rest = uri.partition(":///")
    if "%" not in rest or scheme.partition("+")[0] != "sqlite":
        return uri
    from sqlalchemy.engine import make_url

    if make_url("sqlite:///%25").database != "%":  # an older one takes it as it is
        return uri
    path, mark, query = rest.partition("?")
    if scheme == "sqlite":
        scheme = "sqlite+pysqlite"  # the same; of the short form MLflow makes a folder by the name that is not decoded
    return f"{scheme}{separator}{path.replace('%', '%25')}{mark}{query}"


def address_error(uri: str) -> str | None:
    """Returns why no run can be kept at an address that is not an SQLite file's, and what to do; None if one may."""
    scheme, separator, rest = uri.partition(":")
    if uri == "databricks" or uri.startswith("databricks://"):
        return _without_databricks(uri.removeprefix("databricks").removeprefix("://").partition(":")[0])
    if not separator or not rest.startswith("//") or scheme in ("file", "sqlite") or scheme.startswith("sqlite+"):
        return f"can hold no runs; {_USE}"
    if scheme in ("http", "https"):
        return _without_server(uri)
    database, _, driver = scheme.partition("+")
    if database in _DATABASES and re.fullmatch(r"\w*", driver):
        return None
    if scheme in {point.name for point in importlib.metadata.entry_points(group=_PLUGINS)}:
        return None
    meant = _MEANT.get(database)
    hint = f"write {meant}://" if meant else _USE
    return f"is of a kind that MLflow does not know ({scheme}://); {hint}"


def _without_server(uri: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(uri)
        if parts.hostname and (parts.port is None or parts.port > 0):
            return None
    except ValueError:
        pass
    return "names no server and port; write http://SERVER:PORT"


def _without_databricks(profile: str) -> str | None:
    """Returns what is wrong where nothing says how to log in there: no variable, and no profile of a file."""
    if not profile and any(name.startswith("DATABRICKS_") and value for name, value in os.environ.items()):
        return None
    file = user_path(os.environ.get("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg", "DATABRICKS_CONFIG_FILE")
    parser = ConfigParser(interpolation=None)
    try:
        with file.open(encoding="utf-8") as stream:
            parser.read_file(stream)
    except (OSError, UnicodeDecodeError, ParseError):
        return f"needs to log in, and {file} cannot be read; set DATABRICKS_HOST and DATABRICKS_TOKEN"
    if profile and profile != parser.default_section and not parser.has_section(profile):
        return f"needs to log in, and {file} has no profile {profile}; add it, or name another"
    if not (parser[profile] if profile else parser.defaults()).get("host"):
        where = profile or parser.default_section
        return f"needs to log in, and the profile {where} in {file} has no host; add it"
    return None
