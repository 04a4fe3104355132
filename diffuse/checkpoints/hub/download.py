"""Fetches the files of repositories into the hub's cache, resumes broken transfers, and checks what has arrived.

huggingface_hub cannot resume: it writes to a temporary file with a random name and deletes it when a run ends, however
it ends (https://github.com/huggingface/huggingface_hub/issues/4196, open when this was written; still so in version
2.4.0). Weights of many gigabytes are therefore fetched here. Bytes that have arrived are kept in a file next to the
cache's own, and the next run goes on from there. A file gets its name in the cache once its digest is right;
huggingface_hub finds it there and does the rest. Remove this module when huggingface_hub resumes.
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

from diffuse.checkpoints.hub.cache import cache_folder
from diffuse.checkpoints.hub.errors import hub_errors
from diffuse.checkpoints.hub.progress import progress_bar, readable_size
from diffuse.checkpoints.hub.repository import SMALL, DownloadPlan, RemoteFile
from diffuse.checkpoints.source import LocalCheckpoint
from diffuse.errors import CheckpointError

_WORKERS = 4  # files
_RETRIES = 5  # in a row without a new byte
_WAIT = 1.0  # seconds before another
_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})  # of a server that may recover soon
_MAX_HTTP_BYTES = 50 * 10**9  # larger files are not served over HTTP; huggingface_hub's other transport has them


def download_files(plans: Sequence[DownloadPlan], *, check_all: bool) -> list[LocalCheckpoint]:
    """Fetches the missing files into the cache and checks them. Returns one checkpoint a plan.

    Args:
        plans: one for each source.
        check_all: whether to check the files that were already here, too.

    Raises:
        CheckpointError: the disk is too small, or a file is not what the hub lists; a damaged file is removed.
    """
    _require_room(plans)
    total = sum(plan.missing_size for plan in plans) - partial_size(plans)
    with progress_bar([_blobs(plan) for plan in plans], total):
        checked = _fetch_large(plans)
        folders = [_complete(plan) for plan in plans]
    for plan, folder in zip(plans, folders, strict=True):
        for file in plan.files if check_all else plan.missing:
            if (plan.source.location, file.path) not in checked:
                _check(folder / file.path, file, plan.source.location)
    return [
        plan.source.checkpoint(folder, plan.commit, at_root=plan.at_root)
        for plan, folder in zip(plans, folders, strict=True)
    ]


def partial_size(plans: Sequence[DownloadPlan]) -> int:
    """Counts the bytes of missing files that an interrupted run has left here."""
    partial = {_partial(plan, file) for plan, file in _large(plans)}
    return sum(path.stat().st_size for path in partial if path.is_file())


def fetch_small_files(plan: DownloadPlan) -> Path:
    """Fetches the settings and tokenizers of a repository into the cache, and no weights. Returns their folder."""
    return _complete(plan, [file for file in plan.files if file.path.endswith(SMALL)])


def _large(plans: Sequence[DownloadPlan]) -> Iterator[tuple[DownloadPlan, RemoteFile]]:
    """Yields the missing files that are fetched here and not by huggingface_hub."""
    for plan in plans:
        for file in plan.missing:
            if file.sha256 and file.size and file.size <= _MAX_HTTP_BYTES:
                yield plan, file


def _require_room(plans: Sequence[DownloadPlan]) -> None:
    stored = cache_folder()
    existing = next(folder for folder in (stored, *stored.parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, sum(plan.missing_size for plan in plans) - partial_size(plans)
    if needed > free:
        names = ", ".join(dict.fromkeys(plan.source.location for plan in plans))
        raise CheckpointError(
            f"{names}: needs {readable_size(needed)} and {stored} has {readable_size(free)} free; make room, or set "
            "HF_HOME to a folder on another disk"
        )


def _folder(plan: DownloadPlan) -> str:
    return f"models--{plan.source.repository.replace('/', '--')}"


def _blobs(plan: DownloadPlan) -> Path:
    """Returns the folder where the cache keeps a repository's files, large ones by their SHA-256."""
    return cache_folder() / _folder(plan) / "blobs"


def _partial(plan: DownloadPlan, file: RemoteFile) -> Path:
    """Returns the path of a file that has not arrived as a whole."""
    return _blobs(plan) / f"{file.sha256}.diffuse.incomplete"


def _fetch_large(plans: Sequence[DownloadPlan]) -> set[tuple[str, str]]:
    """Fetches the large files, a few at once. Returns the source and path of those whose digest was checked."""
    stop = threading.Event()
    with ThreadPoolExecutor(_WORKERS) as pool:
        tasks = {
            (plan.source.location, file.path): pool.submit(_fetch_one, plan, file, stop) for plan, file in _large(plans)
        }
        try:
            done, _ = wait(tasks.values(), return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            stop.set()  # after an error or Ctrl-C the others end soon, and what they have stays
            pool.shutdown(cancel_futures=True)
        return {file for file, task in tasks.items() if task.result()}


def _fetch_one(plan: DownloadPlan, file: RemoteFile, stop: threading.Event) -> bool:
    """Fetches a file, unless it is here. Tells whether its digest was checked."""
    from filelock import FileLock

    assert file.sha256 is not None
    source, target, partial = plan.source.location, _blobs(plan) / file.sha256, _partial(plan, file)
    lock = cache_folder() / ".locks" / _folder(plan) / f"{file.sha256}.lock"
    for folder in (target.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with hub_errors(source, plan.source.revision, plan.source.setting), FileLock(lock):  # huggingface_hub's own lock
        if target.exists():
            return False
        digest = _receive_all(plan, file, partial, stop)
        if digest is None:
            return False
        if digest != file.sha256:
            partial.unlink()
            raise _corrupt(source, file)
        os.replace(partial, target)
    return True


def _receive_all(plan: DownloadPlan, file: RemoteFile, partial: Path, stop: threading.Event) -> str | None:
    """Fetches the missing bytes of a file, however often the connection breaks. Returns its digest, None if stopped."""
    from huggingface_hub import errors, hf_hub_url

    url = hf_hub_url(plan.source.repository, file.path, revision=plan.commit)
    digest, failures = hashlib.sha256(), 0
    assert file.size is not None
    with partial.open("a+b", buffering=0) as out:
        if out.tell() > file.size:
            out.truncate(0)
        out.seek(0)
        while block := out.read(1 << 20):
            digest.update(block)
        while (start := out.tell()) < file.size and not stop.is_set():
            failure: Exception | None = None
            try:
                digest = _receive(url, out, digest, stop)
            except errors.HfHubHTTPError as error:
                if error.response.status_code not in _RETRY_STATUSES:
                    raise
                failure = error
            except errors.HTTPError as error:  # type: ignore[attr-defined]
                failure = error
            failures = failures + 1 if out.tell() <= start else 0
            if failures > _RETRIES:
                raise failure or ConnectionError("the file ended early")
            if failure:
                stop.wait(_WAIT)
    return None if stop.is_set() and partial.stat().st_size < file.size else digest.hexdigest()


def _receive(url: str, out: BinaryIO, digest: hashlib._Hash, stop: threading.Event) -> hashlib._Hash:
    """Appends the missing bytes of `url` to `out`, and to `digest`, until all are there or the connection breaks.

    Returns the digest of all that `out` then holds.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    start = out.tell()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with ExitStack() as stack:
        response = stack.enter_context(
            get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
        )
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # from the beginning after all
            out.seek(0)
            out.truncate()
            digest = hashlib.sha256()
        for block in response.iter_raw():
            out.write(block)
            digest.update(block)
            if stop.is_set():
                break
    return digest


def _complete(plan: DownloadPlan, files: Sequence[RemoteFile] | None = None) -> Path:
    """Fetches the small files, and makes a snapshot of all of them in the cache. Returns its folder.

    Args:
        files: those that are wanted, where they are not all.
    """
    from huggingface_hub import snapshot_download

    source = plan.source
    with hub_errors(source.location, source.revision, source.setting):
        # Asked for by the name the user gave, so that the cache remembers which commit that name means.
        folder = Path(
            snapshot_download(
                source.repository,
                revision=source.revision,
                allow_patterns=[glob.escape(file.path) for file in (plan.files if files is None else files)],
                max_workers=_WORKERS,
            )
        )
    if folder.name != plan.commit:
        raise CheckpointError(f"{source.location}: was changed on the hub meanwhile; run the command again")
    return folder


def _check(path: Path, file: RemoteFile, source: str) -> None:
    """Compares a file with what the hub lists, and removes it if it differs, so that it will be fetched again."""
    if file.sha256:
        same = _sha256(path) == file.sha256
    elif file.blob_id:
        same = file.blob_id == _blob_id(path) or file.blob_id == _pointer_id(path)  # the second reads the file again
    else:
        same = file.size is None or path.stat().st_size == file.size  # unknown is not wrong
    if not same:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise _corrupt(source, file)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _blob_id(path: Path) -> str:
    """Returns the digest that git gives a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pointer_id(path: Path) -> str:
    """Returns the digest that git gives the pointer of Git LFS that stands for a file."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(path)}\nsize {path.stat().st_size}\n"
    return hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode(), usedforsecurity=False).hexdigest()


def _corrupt(source: str, file: RemoteFile) -> CheckpointError:
    return CheckpointError(f"{source}/{file.path}: is not what the hub lists; it was removed: run the command again")
