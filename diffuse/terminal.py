"""Output for the user: messages and progress on standard error, and on standard output the saved paths alone."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from diffuse.errors import ConfigError, first_line, one_line

if TYPE_CHECKING:
    from diffuse.sampling.results import Step


def say(line: str) -> None:
    """Prints one line, whatever line breaks the text holds. A stream that takes no more costs nobody a picture."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        print(one_line(line), file=sys.stderr, flush=True)


def counted(number: int, name: str) -> str:
    """Returns a number of things in words, such as `1 step` or `20 steps`."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def confirm(question: str, no_terminal: str) -> bool:
    """Asks the user, and returns whether the answer is yes.

    Raises:
        ConfigError: there is no terminal to ask on; `no_terminal` is its message.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(no_terminal)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


_errors: list[OSError] = []


def print_path(path: Path) -> None:
    """Prints a path on standard output. A reader that has gone costs no image: see `print_error`.

    Letters that the stream's encoding lacks are escaped: an exception would end the thread that saves.
    """
    try:
        try:
            print(path, flush=True)
        except UnicodeEncodeError:
            print(str(path).encode("ascii", "backslashreplace").decode(), flush=True)
    except OSError as error:
        _errors.append(error)
    except Exception as error:  # a stream that is closed, or somebody's own
        _errors.append(OSError(errno.EIO, first_line(error)))


def print_error() -> OSError | None:
    """Returns why paths could not be printed since the last call; None where they could."""
    error = _errors[0] if _errors else None
    _errors.clear()
    return error


class Progress:
    """A progress bar of denoising steps with the time that is left.

    It stands below the cell in a notebook, elsewhere on standard error. There is none where that is no terminal, or
    where `visible` is false.
    """

    def __init__(self, title: str, visible: bool = True) -> None:
        self.title = title
        self.visible = visible
        self.cell: Any = None  # a notebook's display
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        display = notebook_display()
        if not self.visible:
            return self
        if display is not None:
            self.cell = display({"text/plain": ""}, raw=True, display_id=True)
        elif sys.stderr.isatty():
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

    def on_step(self, step: Step) -> None:
        """Moves the bar to the step that has ended."""
        if self.cell is not None:
            done, text = step.index + 1, f"{step.index + 1}/{step.total}"
            bar = f'<progress value="{done}" max="{step.total}"></progress> {text}'
            self.cell.update({"text/html": bar, "text/plain": text}, raw=True)
        if self.bar is not None:
            self.bar.update(self.task, completed=step.index + 1, total=step.total)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self.cell is not None:
            self.cell.update({"text/plain": ""}, raw=True)
        if self.bar is not None:
            self.bar.stop()


def notebook_display() -> Callable[..., Any] | None:
    """Returns IPython's `display` where a notebook's kernel runs this; None in a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return sys.modules["IPython.display"].display
