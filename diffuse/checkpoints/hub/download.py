"""Fetches the files of repositories into the hub's cache, and checks that they are what the hub lists.

huggingface_hub throws away what it has of a file when a run ends, however it ends. Weights are therefore fetched here:
what has arrived lies beside the cache's own files, and the next run goes on from there. A file gets its name in the
cache once its digest is right; huggingface_hub, which finds it there, does the rest.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from diffuse.checkpoints.folder import Checkpoint
from diffuse.checkpoints.hub.repository import Plan, RemoteFile
from diffuse.checkpoints.hub.transfer import cache, explained, progress, readable
from diffuse.errors import CheckpointError

_AT_ONCE = 4  # files
_RETRIES = 5  # in a row that brought nothing
_WAIT = 1.0  # seconds before another
_PASSING = frozenset({408, 429, 500, 502, 503, 504})  # statuses of a server that may be better in a moment
_MOST = 50 * 10**9  # bytes: what is larger is not served over HTTP, and left to huggingface_hub's other transport


def fetch(plans: Sequence[Plan], *, check_all: bool) -> list[Checkpoint]:
    """Brings here what is missing, and checks it; `check_all`: also what was here before.

    Raises:
        CheckpointError: the disk is too small, or a file is not what the hub lists; a damaged file is removed.
    """
    _require_room(plans)
    total = sum(plan.missing_size for plan in plans) - started(plans)
    with progress([_blobs(plan) for plan in plans], total):
        checked = _fetch_large(plans)
        folders = [_complete(plan) for plan in plans]
    for plan, folder in zip(plans, folders, strict=True):
        for file in plan.files if check_all else plan.missing:
            if (plan.wanted.source, file.path) not in checked:
                _check(folder / file.path, file, plan.wanted.source)
    return [
        plan.wanted.checkpoint(folder, plan.commit, at_root=plan.at_root)
        for plan, folder in zip(plans, folders, strict=True)
    ]


def started(plans: Sequence[Plan]) -> int:
    """Bytes of missing files that an interrupted run has left here."""
    partial = {_partial(plan, file) for plan, file in _large(plans)}
    return sum(path.stat().st_size for path in partial if path.is_file())


def _large(plans: Sequence[Plan]) -> Iterator[tuple[Plan, RemoteFile]]:
    """The files that are fetched here."""
    for plan in plans:
        for file in plan.missing:
            if file.sha256 and file.size <= _MOST:
                yield plan, file


def _require_room(plans: Sequence[Plan]) -> None:
    stored = cache()
    existing = next(folder for folder in (stored, *stored.parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, sum(plan.missing_size for plan in plans) - started(plans)
    if needed > free:
        names = ", ".join(dict.fromkeys(plan.wanted.source for plan in plans))
        raise CheckpointError(
            f"{names}: needs {readable(needed)} and {stored} has {readable(free)} free; make room, or set HF_HOME to a "
            "folder on another disk"
        )


def _folder(plan: Plan) -> str:
    return f"models--{plan.wanted.source.replace('/', '--')}"


def _blobs(plan: Plan) -> Path:
    """Where the cache keeps a repository's files, large ones by their SHA-256."""
    return cache() / _folder(plan) / "blobs"


def _partial(plan: Plan, file: RemoteFile) -> Path:
    """Where a file is that has not arrived as a whole."""
    return _blobs(plan) / f"{file.sha256}.diffuse.incomplete"


def _fetch_large(plans: Sequence[Plan]) -> set[tuple[str, str]]:
    """Fetches what is worth resuming, a few files at once. Gives the source and path of those found right."""
    stop = threading.Event()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tasks = {
            (plan.wanted.source, file.path): pool.submit(_fetch_one, plan, file, stop) for plan, file in _large(plans)
        }
        try:
            done, _ = wait(tasks.values(), return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            stop.set()  # after an error or Ctrl-C the others end soon, and what they have stays
            pool.shutdown(cancel_futures=True)
        return {where for where, task in tasks.items() if task.result()}


def _fetch_one(plan: Plan, file: RemoteFile, stop: threading.Event) -> bool:
    """Fetches a file, unless it is here, and says whether its digest was looked at."""
    from filelock import FileLock

    assert file.sha256 is not None
    source, target, partial = plan.wanted.source, _blobs(plan) / file.sha256, _partial(plan, file)
    lock = cache() / ".locks" / _folder(plan) / f"{file.sha256}.lock"
    for folder in (target.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with explained(source, plan.wanted.revision, plan.wanted.setting), FileLock(lock):  # huggingface_hub's own lock
        if target.exists():
            return False
        digest = _arrived(plan, file, partial, stop)
        if digest is None:
            return False
        if digest != file.sha256:
            partial.unlink()
            raise _wrong(source, file)
        os.replace(partial, target)
    return True


def _arrived(plan: Plan, file: RemoteFile, partial: Path, stop: threading.Event) -> str | None:
    """Fetches what is missing of a file, however often the connection breaks. Gives its digest, None if stopped."""
    from huggingface_hub import errors, hf_hub_url

    url = hf_hub_url(plan.wanted.source, file.path, revision=plan.commit)
    digest, failures = hashlib.sha256(), 0
    with partial.open("a+b", buffering=0) as out:
        if out.tell() > file.size:
            out.truncate(0)
        out.seek(0)
        while block := out.read(1 << 20):
            digest.update(block)
        while (have := out.tell()) < file.size and not stop.is_set():
            try:
                digest = _receive(url, out, digest, stop)
                broken: Exception | None = None
            except errors.HfHubHTTPError as error:
                if error.response.status_code not in _PASSING:
                    raise
                broken = error
            except errors.HTTPError as error:  # type: ignore[attr-defined]
                broken = error
            failures = failures + 1 if out.tell() <= have else 0
            if failures > _RETRIES:
                raise broken or ConnectionError("the file ended early")
            if broken:
                stop.wait(_WAIT)
    return None if stop.is_set() and partial.stat().st_size < file.size else digest.hexdigest()


def _receive(url: str, out: BinaryIO, digest: hashlib._Hash, stop: threading.Event) -> hashlib._Hash:
    """Appends what is still missing of `url` to `out`, and to `digest`, until it is all there or the connection breaks.

    Gives the digest of all that `out` then holds.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    have = out.tell()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with ExitStack() as stack:
        response = stack.enter_context(
            get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
        )
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # from the beginning after all
            out.seek(0)
            out.truncate()
            digest = hashlib.sha256()
        for block in response.iter_raw():
            out.write(block)
            digest.update(block)
            if stop.is_set():
                break
    return digest


def _complete(plan: Plan) -> Path:
    """Fetches the small files, and makes a snapshot of all of them in the cache. Gives its folder."""
    from huggingface_hub import snapshot_download

    wanted = plan.wanted
    with explained(wanted.source, wanted.revision, wanted.setting):
        # Asked for by the name the user gave, so that the cache remembers which commit that name means.
        folder = Path(
            snapshot_download(
                wanted.source,
                revision=wanted.revision,
                allow_patterns=[glob.escape(file.path) for file in plan.files],
                max_workers=_AT_ONCE,
            )
        )
    if folder.name != plan.commit:
        raise CheckpointError(f"{wanted.source}: was changed on the hub meanwhile; run the command again")
    return folder


def _check(path: Path, file: RemoteFile, source: str) -> None:
    """Compares a file with what the hub lists, and removes it if it differs, so that it will be fetched again."""
    with path.open("rb") as opened:
        if file.sha256:
            same = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
        elif file.blob_id:
            data = opened.read()
            # The digest that git gives a file of this content.
            same = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == file.blob_id
        else:
            same = path.stat().st_size == file.size
    if not same:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise _wrong(source, file)


def _wrong(source: str, file: RemoteFile) -> CheckpointError:
    return CheckpointError(f"{source}/{file.path}: is not what the hub lists; it was removed: run the command again")
