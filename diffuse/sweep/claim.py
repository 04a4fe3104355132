"""The claim on a sweep's folder: the file `.start` names the command that the workers of the sweep work for.

A command claims the folder when it starts, and releases it at its end and on Ctrl-C; the next command claims it again.
Workers look at the file twice a second, and stop after their current step when the claim is no longer theirs. This
reaches workers on other machines, which get no signal, and workers whose command was killed. On a network file system
a removed file is noticed at once, whereas a new one may stay unseen for a minute.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffuse.sweep.interrupt import Interruption

CLAIM_FILE = ".start"
_POLL_S = 0.5


def claim_folder(folder: Path) -> None:
    """Claims a sweep's folder for this command. Raises OSError where the file cannot be written."""
    (folder / CLAIM_FILE).write_text(secrets.token_hex(8))


def release_folder(folder: Path) -> None:
    """Removes the claim, so that all workers stop."""
    with suppress(OSError):
        (folder / CLAIM_FILE).unlink()


def current_claim(folder: Path) -> str:
    """Returns the token of the command that has claimed `folder`, or an empty text. Raises OSError as reading does."""
    try:
        return (folder / CLAIM_FILE).read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def watch_claim(folder: Path, claim: str, interruption: Interruption) -> Iterator[None]:
    """Requests `interruption` during the block as soon as `folder` is no longer claimed by `claim`."""
    ended = threading.Event()

    def watch() -> None:
        while not interruption.requested:
            with suppress(OSError):  # a failed read is no reason to stop
                interruption.requested = not claim or current_claim(folder) != claim
            if ended.wait(_POLL_S):
                return

    threading.Thread(target=watch, name="diffuse-claim", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
