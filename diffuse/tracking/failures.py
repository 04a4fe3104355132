"""What is wrong where MLflow's store does not do as it is told: gone for now, unwilling, or in need of something."""

from __future__ import annotations

import socket
import sqlite3
import urllib.parse

from diffuse.record.values import redact

CONNECT_SECONDS = 5.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def knock(uri: str) -> None:
    """Raises OSError where no server or database answers: a moment, not the minutes that MLflow would try."""
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


def is_away(error: BaseException | None) -> bool:
    """Whether the store cannot be reached now, which says nothing of what it was to be given."""
    if _is_unreachable(error) or isinstance(error, sqlite3.OperationalError):
        return True
    return getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether a connection failed: MLflow wraps what its HTTP library raised."""
    import requests

    while error is not None:
        if isinstance(error, requests.exceptions.RequestException | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_refusal(error: BaseException) -> bool:
    """Whether the store answered that it will never take this, so that trying again is of no use."""
    code = getattr(error, "error_code", None)
    return code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST") and not _is_unreachable(error)


def why(error: BaseException) -> str:
    """One line that says what is wrong."""
    if isinstance(error, ImportError) and str(error.name).startswith("psycopg"):
        return "the driver for PostgreSQL is not installed; pip install 'diffuse[postgres]'"
    if isinstance(error, ImportError):
        return f"MLflow cannot be imported ({error}); install it, or set tracking=none"
    if _is_unreachable(error):
        return "the server does not answer"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return str(redact(line))[:300]
