"""The display of a transfer: a progress bar, and sizes in words."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def progress_bar(folders: Sequence[Path], total: int) -> Iterator[None]:
    """Shows a bar of the received bytes on a terminal, and nothing elsewhere. It replaces what huggingface_hub prints.

    Args:
        folders: of the cache; their growth is what the bar shows, whichever transport writes to them.
        total: bytes that are to be received.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

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
    """Counts the bytes in the folders, including those of unfinished files."""
    total = 0
    for path in (path for folder in {*folders} for path in folder.glob("*")):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # just renamed
            continue
    return total


def readable_size(count: int) -> str:
    """Formats a number of bytes in decimal units, as the hub's own pages do."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
