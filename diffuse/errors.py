"""Errors that a user can cause. Each message says in one line what happened and what to do next."""

import re
import traceback

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # with which a text could have a terminal do things


def one_line(text: str) -> str:
    """Returns text from anywhere as one line that is safe to print."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def raised_in(error: BaseException, *packages: str) -> bool:
    """Returns whether code of one of `packages` raised an error, of a type that anything else may raise too."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).partition(".")[0] in packages


class DiffuseError(Exception):
    """The request is wrong: the command prints the message alone and exits with status 2."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # whatever the values it quotes hold


class ConfigError(DiffuseError):
    """A name, a value or a combination in the configuration cannot be used."""


class NotInStore(ConfigError):
    """The tracking store has no run, sweep or experiment of that name."""


class NotFetched(ConfigError):
    """Files of a model are not here, and `model.download=never` says that none are fetched."""


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


class OutOfMemory(RunError):
    """Memory ran out.

    Args:
        component: the full name of the component that was at work, if any.
        loading: its weights were on their way.
        final: nothing is left that would need less memory.
    """

    def __init__(
        self, message: str, component: str | None = None, *, loading: bool = False, final: bool = False
    ) -> None:
        super().__init__(message)
        self.component, self.loading, self.final = component, loading, final


def is_wrong_request(error: BaseException | None) -> bool:
    """Returns whether an error says that the request is wrong, rather than that its run failed."""
    return isinstance(error, DiffuseError) and error.exit_status == DiffuseError.exit_status
