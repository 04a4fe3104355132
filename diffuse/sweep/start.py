"""Which start of a sweep's command its workers work for: the one that a file in the sweep's folder names.

The end of the command and Ctrl-C take the file away, and the next start names itself there. Workers look every moment,
and stop after their step when it is no longer theirs: so does one on another machine, which no signal reaches, and one
whose command was killed. A file that goes is noticed at once on a network file system as well, whereas one that comes
may stay unseen there for a minute.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffuse.sweep.interrupt import Interruption

FILE = ".start"
_LOOK_S = 0.5  # between looks at it


def begin(folder: Path) -> None:
    """From now on, `folder` belongs to a new start. Raises OSError where that cannot be written."""
    (folder / FILE).write_text(secrets.token_hex(8))


def end(folder: Path) -> None:
    """No more is to be done in `folder`."""
    with suppress(OSError):
        (folder / FILE).unlink()


def current(folder: Path) -> str:
    """The name of the start that `folder` belongs to; empty where there is none. Raises OSError as reading does."""
    try:
        return (folder / FILE).read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def followed(folder: Path, name: str, interruption: Interruption) -> Iterator[None]:
    """In the block, `interruption` is asked for as soon as `folder` does not belong to the start `name`."""
    left = threading.Event()

    def look() -> None:
        while not interruption.asked:
            with suppress(OSError):  # what cannot be read now is no reason to stop
                interruption.asked = not name or current(folder) != name
            if left.wait(_LOOK_S):
                return

    threading.Thread(target=look, name="diffuse-start", daemon=True).start()
    try:
        yield
    finally:
        left.set()
