"""What a user sees on standard error while a run goes on. Standard output is left to the saved paths."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from diffuse.request import Step


def say(line: str) -> None:
    """Prints one line, whatever line breaks the text holds."""
    print(" ".join(line.split()), file=sys.stderr, flush=True)


class Progress:
    """A bar with the time that is left, told of each denoising step; nothing where standard error is no terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            title = " ".join(self.title.split())
            self.task = self.bar.add_task(title if len(title) <= 40 else f"{title[:39]}…", total=None)
            self.bar.start()
        return self

    def step(self, step: Step) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step.index + 1, total=step.total)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
