"""Errors that a user can cause. Each message says in one line what happened and what to do next."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # with which a text could have a terminal do things


def one_line(text: str) -> str:
    """Returns text from anywhere as one line that is safe to print."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class DiffuseError(Exception):
    """The request is wrong: the command prints the message alone and exits with status 2."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # whatever the values it quotes hold


class ConfigError(DiffuseError):
    """A name, a value or a combination in the configuration cannot be used."""


class CheckpointError(DiffuseError):
    """A model's files are missing, damaged or of an architecture that is not implemented."""


class HardwareError(DiffuseError):
    """The hardware asked for is not there, or cannot do what was asked of it."""


class MediaError(DiffuseError):
    """A media file cannot be read, or the place to write it to cannot be used."""


class Stop(DiffuseError):
    """Raised by a callback of `on_step` to end the run there. It reaches the caller."""

    def __init__(self, message: str = "stopped by on_step") -> None:
        super().__init__(message)


class RunError(DiffuseError):
    """The request was right and the run failed: the command exits with status 1."""

    exit_status = 1
