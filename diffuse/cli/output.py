"""Lines on the standard streams: results on standard output, messages and errors on standard error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from diffuse.errors import DiffuseError, RunError


def print_line(text: object) -> None:
    """Prints a line on standard output. Raises RunError where it cannot be written, unless its reader has gone."""
    with writing_output():
        print(text, flush=True)


@contextmanager
def writing_output() -> Iterator[None]:
    """Raises RunError where standard output cannot be written in the block, unless its reader has gone."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"standard output cannot be written: {error.strerror}") from error


def report_line(message: str) -> None:
    """Prints a message as one line on standard error, if that takes it."""
    with suppress(OSError, ValueError):
        print(f"diffuse: {' '.join(message.split())}", file=sys.stderr, flush=True)


def report_error(error: Exception) -> None:
    """Prints one line for an error that the user can correct, and a traceback for one that only a developer can."""
    if isinstance(error, DiffuseError):
        report_line(str(error))
    else:
        traceback.print_exception(error)
