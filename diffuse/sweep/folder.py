"""A sweep's folder: its `sweep.json`, and the lock that keeps two commands from making the same jobs. No torch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError, MediaError
from diffuse.sweep.claim import claim_folder, release_folder
from diffuse.sweep.job_folder import read_json, replace_json

log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
_HYDRA_FILE = "multirun.yaml"  # which Hydra writes into the folder
_VERSION = 1
_NO_LOCK = "%s cannot be locked here: start no second command that makes the same sweep while this one runs"
_NOT_IN_FILE = ("folder", "may_exist")


@dataclass(frozen=True)
class Sweep:
    """A sweep, as `sweep.json` describes it; its jobs read it there, wherever they run."""

    identity: str
    name: str
    folder: Path
    overrides: list[str]  # as the user typed them
    axes: list[str]  # the keys that differ between jobs
    seed: int | None = None  # drawn where the user gave none
    jobs: int | None = None  # None where the sweeper chooses them one after the other
    may_exist: bool = True  # an earlier command may have recorded it


def read_sweep(folder: Path) -> Sweep | None:
    """Returns the sweep that the `sweep.json` in `folder` describes; None where it cannot be read."""
    content = read_json(folder / SWEEP_FILE)
    try:
        names = ("identity", "name", "overrides", "axes", "seed", "jobs")
        return None if content is None else Sweep(folder=folder, **{name: content[name] for name in names})
    except KeyError:
        return None


def sweep_as_json(sweep: Sweep) -> dict[str, Any]:
    """Returns the content of `sweep.json`, without the time at which the sweep was started."""
    return {"version": _VERSION, **{name: value for name, value in asdict(sweep).items() if name not in _NOT_IN_FILE}}


@contextmanager
def open_sweep_folder(sweep: Sweep) -> Iterator[None]:
    """Locks and claims the sweep's folder during the block, with `sweep.json` in it.

    A new folder in which no job has left anything is removed afterwards.

    Raises:
        MediaError: the folder cannot be written.
        ConfigError: another process is at work in it.
    """
    folder = sweep.folder
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    new_files = [name for name in (SWEEP_FILE, _HYDRA_FILE) if not (folder / name).exists()]
    previous = read_json(folder / SWEEP_FILE) or {}
    created = previous.get("created") if previous.get("identity") == sweep.identity else None
    created = created or datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            replace_json(folder / SWEEP_FILE, sweep_as_json(sweep) | {"created": created})
            claim_folder(folder)
            try:
                yield
            finally:
                release_folder(folder)
    except OSError as error:
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise  # of something else that the block does
        reason = f"{error.filename} cannot be written: {error.strerror}"
        raise MediaError(f"output.dir: {reason}; choose another folder") from error
    finally:
        with suppress(OSError):
            if {path.name for path in folder.iterdir()} <= set(new_files):
                for name in new_files:
                    (folder / name).unlink(missing_ok=True)
            for path in new_folders:
                path.rmdir()  # fails for a folder that is not empty


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder itself: the lock goes with the process, however it ends. Some file systems have no locks."""
    if sys.platform == "win32":
        log.warning(_NO_LOCK, folder)
        yield
        return

    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another process makes a sweep in it; wait for it to end, or stop it") from None
    except OSError:
        log.warning(_NO_LOCK, folder)
    try:
        yield
    finally:
        os.close(descriptor)
