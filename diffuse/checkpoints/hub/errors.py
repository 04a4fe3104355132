"""The failures of the network and of the hub, explained: one line each that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffuse.checkpoints.hub.cache import cache_folder
from diffuse.errors import CheckpointError, DiffuseError, first_line


@contextmanager
def hub_errors(source: str, revision: str | None, setting: str = "model") -> Iterator[None]:
    """Turns the failures of the network and of the hub into a CheckpointError each.

    Args:
        source: the repository `OWNER/NAME`.
        revision: the commit, tag or branch that was asked for.
        setting: what the source's fields begin with in the configuration.
    """
    from huggingface_hub import errors

    failures: tuple[type[Exception], ...] = (errors.HfHubHTTPError, errors.HFValidationError, OSError)
    failures += _network_errors()
    try:
        yield
    except DiffuseError:
        raise
    except failures as error:
        raise CheckpointError(f"{source}: {_explain(error, revision, source, setting)}") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Returns the base class of the HTTP library under huggingface_hub, and the failure of its other transport."""
    from huggingface_hub import errors

    return errors.HTTPError, errors.XetDownloadError  # type: ignore[attr-defined]


def _explain(error: BaseException, revision: str | None, source: str, setting: str) -> str:
    from huggingface_hub import errors, get_token

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"{_endpoint()}/{source}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"not all of it is in {cache_folder()}, and HF_HUB_OFFLINE is set; unset it, or run 'diffuse download' "
            "where there is a network"
        )
    if isinstance(error, errors.GatedRepoError):
        if get_token():
            return f"is gated and your token has no access; ask for it at {page}"
        return f"is gated; accept its terms at {page}, then log in with 'hf auth login' or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"has no revision {revision}; set {setting}.revision to one of its commits, tags or branches, or to null "
            "for the newest"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such folder here and no such repository on the hub, or it is private; check the name, or log "
            "in with 'hf auth login'"
        )
    if status == 401:
        return "the hub does not accept your token; log in anew with 'hf auth login' or unset HF_TOKEN"
    if status is not None:
        return f"{_endpoint()} answered with status {status}; try again later"
    if isinstance(error, errors.HFValidationError):
        return f"is not a name a hub repository can have; set {setting}.source to a folder or to OWNER/NAME"
    if isinstance(error, (*_network_errors(), ConnectionError)):
        return (
            f"is not here, and the transfer from {_endpoint()} failed ({first_line(error)}); check the network and "
            "run the command again: files that arrived are kept"
        )
    reason = getattr(error, "strerror", None) or first_line(error)
    return f"could not be fetched into {cache_folder()}: {reason}; run the command again: files that arrived are kept"


def _endpoint() -> str:
    """Returns the hub's address: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
