"""Errors of a store: whether it is unavailable for now, refuses something for good, or lacks a package."""

from __future__ import annotations

import re
import socket
import urllib.parse

from diffuse.record.values import redact
from diffuse.tracking.upgrade import is_known_revision, newer_line

CONNECT_SECONDS = 5.0
# As MLflow and alembic call the schema of a database.
_SCHEMA = re.compile(r"Can't locate revision identified by '(\w+)'|database schema \(found version (\w+)")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_reachable(uri: str) -> None:
    """Raises OSError where no server or database answers, in a moment: MLflow would try for minutes."""
    if not uri.startswith(("http://", "https://")):
        parts = urllib.parse.urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname and port:
            try:
                socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
            except OSError as error:
                raise ConnectionError("the server does not answer") from error
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=CONNECT_SECONDS).close()
    except requests.exceptions.SSLError:
        return  # it answers; whether its certificate is good enough is MLflow's to judge
    except requests.exceptions.RequestException as error:
        raise ConnectionError("the server does not answer") from error


def is_unavailable(error: BaseException) -> bool:
    """Returns whether the store cannot be used now, which says nothing about the run that was sent."""
    return _is_unreachable(error) or getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"


def is_refusal(error: BaseException, *, of_value: bool = False) -> bool:
    """Returns whether the store will never take the data, so that another try is of no use.

    Args:
        of_value: it was data alone, which a database may refuse for its own reasons.
    """
    codes = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", *(["BAD_REQUEST"] if of_value else [])}
    return getattr(error, "error_code", None) in codes and not _is_unreachable(error)


def remedy(error: BaseException, sync: str) -> str:
    """Returns what the user can do about a run that could not be delivered; `sync` is the command for its journal."""
    if isinstance(error, OSError):
        return f"make that place usable, then {sync}"
    if getattr(error, "error_code", None) in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return f"log in with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, then {sync}"
    return f"{sync} tries it again"


def error_line(error: BaseException) -> str:
    """Returns one line for the user, without secrets."""
    if isinstance(error, ImportError) and str(error.name).startswith("psycopg"):
        return "the driver for PostgreSQL is not installed; pip install 'diffuse[postgres]'"
    if isinstance(error, ImportError):
        return f"MLflow cannot be imported ({error}); install it, or set tracking=none"
    if _is_unreachable(error):
        return "the server does not answer"
    if (found := _SCHEMA.search(str(error))) and not is_known_revision(found[1] or found[2]):
        return newer_line(found[1] or found[2])
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return str(redact(line))[:300]


def _is_unreachable(error: BaseException | None) -> bool:
    """Returns whether a connection failed: MLflow wraps the errors of its HTTP library."""
    import requests

    while error is not None:
        if isinstance(error, requests.exceptions.RequestException | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False
