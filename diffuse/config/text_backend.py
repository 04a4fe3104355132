"""Checks of the group `text_backend`: which option has which settings. No torch."""

from __future__ import annotations

import math
import urllib.parse
from dataclasses import fields
from typing import Any

from diffuse.errors import ConfigError
from diffuse.schema import TextBackendConfig

AUTO = "auto"  # the model's own text encoder, whatever that is
# The settings of those that stand in for a model's own text encoder. The other options of the group name that.
SETTINGS: dict[str, tuple[str, ...]] = {
    "precomputed": ("file", "text_encoder_sha256"),
    "api": ("url", "token", "timeout", "retries", "text_encoder_sha256"),
    "random": ("seed",),
}
_MOST_RETRIES = 100
_SHA256_LETTERS = 64


def is_own_encoder(name: str) -> bool:
    """Tells whether an option of `text_backend` is the model's own text encoder, on this machine."""
    return name not in SETTINGS


def check_text_backend(config: Any) -> None:
    """Checks the settings of a text backend.

    Args:
        config: the group, as a `TextBackendConfig` or of a configuration.

    Raises:
        ConfigError: one is missing, out of range, or of another option.
    """
    name = str(config.name)
    for field in fields(TextBackendConfig):
        value = getattr(config, field.name)
        if field.name != "name" and value is not None and field.name not in SETTINGS.get(name, ()):
            owners = " or ".join(f"text_backend={each}" for each, names in SETTINGS.items() if field.name in names)
            shown = "" if field.name == "token" else f"={value}"
            raise ConfigError(f"text_backend.{field.name}{shown}: is a setting of {owners}, and not of {name}")
    if name == "precomputed" and not config.file:
        raise ConfigError("text_backend=precomputed: add text_backend.file=FILE, which diffuse encode has written")
    if name == "api":
        _check_service(config)
    digest = config.text_encoder_sha256
    if digest is not None and (len(digest) != _SHA256_LETTERS or set(digest) - set("0123456789abcdef")):
        raise ConfigError(f"text_backend.text_encoder_sha256={digest}: should be a SHA-256, of 64 letters 0-9 and a-f")


def _check_service(config: Any) -> None:
    if not config.url:
        raise ConfigError("text_backend=api: add text_backend.url=http://HOST:PORT, where diffuse serve-text runs")
    try:
        parts = urllib.parse.urlsplit(config.url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or any(letter <= " " or letter > "~" for letter in config.url):
        raise ConfigError(f"text_backend.url={config.url}: should be an address such as http://HOST:8765")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("text_backend.url: holds a name or a password; the service has a text_backend.token")
    if config.timeout is not None and not (math.isfinite(config.timeout) and config.timeout > 0):
        raise ConfigError(f"text_backend.timeout={config.timeout}: should be seconds, above 0")
    if config.retries is not None and not 0 <= config.retries <= _MOST_RETRIES:
        raise ConfigError(f"text_backend.retries={config.retries}: should be from 0 to {_MOST_RETRIES}")
    if config.token is not None:
        check_text_token("text_backend.token", config.token)


def check_text_token(name: str, token: str) -> None:
    """Raises ConfigError, with the name of the setting and without its value, for what no header can carry."""
    if not token or any(not "!" <= letter <= "~" for letter in token):
        raise ConfigError(f"{name}: should be letters, digits and signs of ASCII, without spaces or an end of line")
