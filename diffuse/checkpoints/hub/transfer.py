"""What a transfer from the hub shows while it runs, and how its failures are told: one line each, with a way out."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffuse.errors import CheckpointError, DiffuseError


@contextmanager
def explained(source: str, revision: str | None, setting: str = "model") -> Iterator[None]:
    """Turns the failures of the network and of the hub into one line each. `setting` is what the source's fields begin
    with in the configuration."""
    from huggingface_hub import errors

    failures: tuple[type[Exception], ...] = (errors.HfHubHTTPError, errors.HFValidationError, OSError)
    failures += _network_errors()
    try:
        yield
    except DiffuseError:
        raise
    except failures as error:
        raise CheckpointError(f"{source}: {_explain(error, revision, source, setting)}") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """The base class of the HTTP library that huggingface_hub was built on, and the failure of its other transport."""
    from huggingface_hub import errors

    return errors.HTTPError, errors.XetDownloadError  # type: ignore[attr-defined]


def _explain(error: BaseException, revision: str | None, source: str, setting: str) -> str:
    from huggingface_hub import errors, get_token

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"{endpoint()}/{source}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"not all of it is in {cache()}, and HF_HUB_OFFLINE is set; unset it, or run 'diffuse download' where "
            "there is a network"
        )
    if isinstance(error, errors.GatedRepoError):
        if get_token():
            return f"is gated and your token has no access; ask for it at {page}"
        return f"is gated; accept its terms at {page}, then log in with 'hf auth login' or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"has no revision {revision}; set {setting}.revision to one of its commits, tags or branches, or to null "
            "for the newest"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such folder here and no such repository on the hub, or it is private; check the name, or log "
            "in with 'hf auth login'"
        )
    if status == 401:
        return "the hub does not accept your token; log in anew with 'hf auth login' or unset HF_TOKEN"
    if status is not None:
        return f"{endpoint()} answered with status {status}; try again later"
    if isinstance(error, errors.HFValidationError):
        return f"is not a name a hub repository can have; set {setting}.source to a folder or to OWNER/NAME"
    if isinstance(error, (*_network_errors(), ConnectionError)):
        return (
            f"is not here, and the transfer from {endpoint()} failed ({_first_line(error)}); check the network and run "
            "the command again: files that arrived are kept"
        )
    reason = getattr(error, "strerror", None) or _first_line(error)
    return f"could not be fetched into {cache()}: {reason}; run the command again: files that arrived are kept"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def progress(folders: Sequence[Path], total: int) -> Iterator[None]:
    """A bar of the bytes that arrived, on a terminal; nothing elsewhere. It replaces what huggingface_hub prints.

    It watches the cache's `folders`, and so sees every transport.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log = logging.getLogger("huggingface_hub")
    was_disabled, level = are_progress_bars_disabled(), log.level
    disable_progress_bars()
    log.setLevel(logging.ERROR)  # each broken connection would be a warning of several lines
    try:
        if not sys.stderr.isatty() or not total:
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        before, done = _stored(folders), threading.Event()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)

            def watch() -> None:
                while not done.wait(0.3):
                    bar.update(task, completed=min(total, max(0, _stored(folders) - before)))

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            try:
                yield
            finally:
                done.set()
                watcher.join()
    finally:
        log.setLevel(level)
        if not was_disabled:
            enable_progress_bars()


def _stored(folders: Sequence[Path]) -> int:
    """Bytes in the folders, files being fetched included."""
    total = 0
    for path in (path for folder in {*folders} for path in folder.glob("*")):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # just renamed
            continue
    return total


def cache() -> Path:
    """Where huggingface_hub keeps what it fetched: HF_HUB_CACHE, or `hub` below HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def readable(count: int) -> str:
    """A number of bytes in decimal units, as the hub's own pages count."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
