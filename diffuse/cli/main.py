"""The console command: finds the command that was typed, and turns its errors into messages and an exit status.

Nothing is imported before it is needed: help and refused requests import neither torch nor MLflow.
"""

from __future__ import annotations

import atexit
import codecs
import gc
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import diffuse
from diffuse.checkpoints.bus_error import leave_cut_files, report_cut_files
from diffuse.cli.command_help import command_help_text
from diffuse.cli.completion import run_completion, takes_completion
from diffuse.cli.help import help_text
from diffuse.cli.options import CONFIG_DIR, CONFIG_NAME, HELP, VERSION, take_value
from diffuse.cli.output import print_line, report_error, report_line
from diffuse.cli.words import check_words
from diffuse.errors import ConfigError, DiffuseError
from diffuse.sweep.interrupt import stop_signals_as_ctrl_c

COMMANDS = (
    "generate",
    "plan",
    "compare",
    "convert",
    "reproduce",
    "download",
    "doctor",
    "ui",
    "sync",
    "encode",
    "serve-text",
)
_INTERRUPTED = 130
_PRINTABLE = "diffuse-printable"  # the name of an error handler
_SPINS = "10000"  # libgomp's own 300,000 are for machines with nothing else to do
_GC_THRESHOLDS = 100_000, 20, 100  # objects between Python's searches for cycles: imports make a million that stay


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 2 the request is wrong, 1 the run failed, 130 interrupted, as by SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    _log_to_stderr()
    gc.set_threshold(*_GC_THRESHOLDS)
    atexit.register(gc.freeze)  # Python would search what torch and Hydra made three times more before it ends
    # Set before torch is imported, whose threads wait for one another by spinning: where another process needs a core,
    # such as the one that tracks, that makes everything five times slower. It changes no number.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    report_cut_files(report_error)
    try:
        with stop_signals_as_ctrl_c():
            _dispatch(arguments)
        status = 0
    except KeyboardInterrupt:
        report_line("interrupted")
        status = _INTERRUPTED
    except BrokenPipeError:  # the reader of standard output has gone
        status = 1
    except Exception as error:
        report_error(error)
        status = error.exit_status if isinstance(error, DiffuseError) else 1
    finally:
        leave_cut_files()
    sys.exit(status if _flushed() else status or 1)


def _flushed() -> bool:
    """Returns whether standard output took everything. The rest is dropped, or Python would complain at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _dispatch(arguments: list[str]) -> None:
    if takes_completion(arguments):
        return run_completion(arguments, COMMANDS)
    folder, arguments = take_value(arguments, CONFIG_DIR, "DIR")
    name, arguments = take_value(arguments, CONFIG_NAME, "NAME")
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    if command is None:
        check_words(arguments, COMMANDS)
    rest = arguments[1:] if command else arguments
    if any(argument in HELP for argument in rest):
        print_line(help_text() if command is None else command_help_text(command))
        return
    if VERSION in rest:
        print_line(f"diffuse {diffuse.__version__}")
        return
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the current folder is not there any more: {error.strerror}; go to another") from None
    with _own_configuration(rest, folder, name):
        _run(command or "generate", rest)


def _run(command: str, arguments: list[str]) -> None:
    if command == "generate":
        from diffuse.cli.generate import run_generate

        run_generate(arguments)
    else:
        from diffuse.cli.commands import run_command

        run_command(command, arguments)


def _own_configuration(arguments: list[str], folder: str | None, name: str | None) -> AbstractContextManager[None]:
    if folder is None and name is None and not any(each.startswith("hydra.") for each in arguments):
        return nullcontext()

    from diffuse.config.compose import own_configuration

    return own_configuration(arguments, folder, name)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return prefix + " ".join(record.getMessage().split())


def _log_to_stderr() -> None:
    """Prints the log of the package as lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    log = logging.getLogger("diffuse")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _prepare_streams() -> None:
    """Replaces streams that the caller has closed, so that no file gets their numbers. Lets any path be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - takes the lowest free number: its own
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(_PRINTABLE, _printable)
        sys.stdout.reconfigure(errors=_PRINTABLE)


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Returns the byte of a path that is not text, and the escape, as `\\u4e2d`, of a letter the encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # as os.fsdecode makes them
        return bytes([code - 0xDC00]), error.start + 1
    return letter.encode("ascii", "backslashreplace").decode(), error.start + 1
