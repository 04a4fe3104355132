"""Names of media files, and writing that leaves a whole file or none and never overwrites one."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from diffuse.errors import MediaError, RunError, first_line

log = logging.getLogger(__name__)
_warnings_lock = threading.RLock()

TEMPORARY = ".diffuse-"  # every unfinished file begins with this and ends with .tmp

_STEM_CHARACTERS = 50
_NAME_BYTES = 200  # file systems allow 255; the number and the extension need some
_MOST_NUMBERS = 100_000
_unfinished: set[Path] = set()  # that this process is writing
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)  # Windows keeps these
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')


def file_stem(prompt: str, seed: int, name: str | None = None) -> str:
    """Returns a file name without extension: `name`, or one from the prompt and the seed where `name` is None.

    In a prompt, every character outside A-Z, a-z and 0-9 becomes `_`, and the first 50 are kept.

    Raises:
        MediaError: `name` is more than a file's name, or some system cannot store it.
    """
    if name is not None:
        return check_name(name)
    words = re.sub(r"[^A-Za-z0-9]", "_", prompt)[:_STEM_CHARACTERS]
    return f"{words if words.strip('_') else 'image'}_{seed}"


def _extension(name: str) -> str | None:
    """Returns the end of a name that is the extension of a medium."""
    from diffuse.media.formats import format_of  # which needs this module

    path = Path(name)
    return None if format_of(path) is None else path.suffix


def check_name(name: str) -> str:
    """Returns `name`, shortened to what file systems take.

    Raises:
        MediaError: it is more than a file's name, or some system cannot store it.
    """
    fault = ""
    if not name.strip(". "):
        fault = "is empty"
    elif match := _FORBIDDEN.search(name):
        fault = f"holds {match[0]!r}: it names a file, and output.dir the folder"
    elif name[0] == "." or name[-1] in ". " or name[0] == " ":
        fault = "begins or ends with a dot or a space"
    elif _DEVICE.fullmatch(name):
        fault = "is the name of a device on Windows"
    elif (suffix := _extension(name)) is not None:
        fault = f"ends with {suffix}, and output.format says how a file ends"
    if fault:
        raise MediaError(f"output.name={name!r} {fault}; choose a plain name without extension")
    return name.encode()[:_NAME_BYTES].decode(errors="ignore").rstrip(". ")


def check_output(folder: Path) -> None:
    """Checks that files can be made in `folder`, or in the folder it would be made in. Nothing is left behind.

    Raises:
        MediaError: they cannot; it says why.
    """
    parent = Path(os.path.abspath(folder))
    try:
        while not _exists(parent):
            parent = parent.parent
        if not parent.is_dir():
            raise MediaError(f"output.dir={folder}: {parent} is a file; choose a folder")
        # Trying is the only sure answer: permission bits say nothing of read-only mounts, quotas and the superuser.
        probe = parent / temporary_name()
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        raise MediaError(f"output.dir={folder} cannot be written: {reason(error)}; choose another folder") from error


def _exists(path: Path) -> bool:
    """Returns whether there is anything at `path`. Path.exists() takes a name that is too long, or in a folder that
    may not be read, for a free one."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_new_file(content: bytes | Callable[[Path], None], folder: Path, stem: str, extension: str) -> Path:
    """Writes `content` under the first free name and returns the path.

    The file appears under its name complete and on disk. An existing file is never overwritten: `_1`, `_2` and so on
    are appended to the name, also when several processes write at once.

    Args:
        content: the bytes, or a function that writes them to the path that it gets.

    Raises:
        RunError: the file could not be written, for instance because the disk is full; nothing of it is left.
    """
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / temporary_name()
        _unfinished.add(temporary)
        if isinstance(content, bytes):
            _write(temporary, content)
        else:
            content(temporary)
            _sync(temporary)
        path = _publish(temporary, folder, stem, f".{extension}", _move)
        sync_folder(folder)
        return path
    except OSError as error:
        name = f"{stem}.{extension} could not be saved in {folder}"
        raise RunError(f"{name}: {reason(error)}; make room or set output.dir elsewhere") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            _unfinished.discard(temporary)


def write_new_folder(write: Callable[[Path], None], folder: Path, stem: str) -> Path:
    """Makes a folder under the first free name, has `write` fill it, and returns the path.

    It appears under its name complete and on disk. What exists is never overwritten, as with `write_new_file`.

    Raises:
        RunError: it could not be written; nothing of it is left.
    """
    temporary = folder / temporary_name()
    _unfinished.add(temporary)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for path in temporary.iterdir():
            _sync(path)
        sync_folder(temporary)
        path = _publish(temporary, folder, stem, "", _move_folder)
        sync_folder(folder)
        return path
    except OSError as error:
        raise RunError(
            f"{stem} could not be saved in {folder}: {reason(error)}; make room or set output.dir elsewhere"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unfinished.discard(temporary)


def write_new(write: Callable[[Path], None], path: Path, *, folder: bool) -> None:
    """Has `write` make a file, or fill a folder, which appears under its name complete and on disk.

    Raises:
        FileExistsError: there is something of this name; it is left as it is.
        OSError: it could not be written; nothing of it is left.
    """
    temporary = path.parent / temporary_name()
    _unfinished.add(temporary)
    try:
        if folder:
            temporary.mkdir()
        write(temporary)
        for where, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(where, name))
            sync_folder(Path(where))
        if not folder:
            _sync(temporary)
        (_move_folder if folder else _move)(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if folder else temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Removes the file at `path` after the block, and before if `remove_unfinished` is called meanwhile."""
    _unfinished.add(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Removes the files and folders that threads of this process are writing, which is about to end."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def temporary_name() -> str:
    """Returns a name for an unfinished file that no other process uses."""
    return f"{TEMPORARY}{secrets.token_hex(8)}.tmp"


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Waits until a file's content is on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _publish(temporary: Path, folder: Path, stem: str, suffix: str, move: Callable[[Path, Path], None]) -> Path:
    """Gives the finished file or folder the first free name. Only one process can succeed with a name, and none
    overwrites it."""
    for number in range(_MOST_NUMBERS):
        path = folder / f"{stem}{f'_{number}' if number else ''}{suffix}"
        try:
            move(temporary, path)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{_MOST_NUMBERS} files of that name exist")


def _move_folder(temporary: Path, path: Path) -> None:
    if os.name != "nt":  # there, a folder is not put in the place of another
        path.mkdir()  # claims the name; a folder that is empty may be replaced by another
    os.rename(temporary, path)


def _move(temporary: Path, path: Path) -> None:
    if os.name == "nt":
        os.rename(temporary, path)  # refuses to overwrite, there
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: an empty file claims the name, and the finished one replaces it.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut. Not every system can; the file itself is safe on disk already."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        log.debug("%s cannot be synchronised", folder)
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Returns why an operation failed, in one line."""
    return getattr(error, "strerror", None) or first_line(error)


@contextmanager
def pillow_warnings(action: Literal["error", "ignore"], category: type[Warning] = Warning) -> Iterator[None]:
    """Has Python's warnings of `category` ignored or raised in the block, one thread at a time.

    Python keeps one list of filters for all threads, and a block that ends puts back the list that it found.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter(action, category)
        yield
