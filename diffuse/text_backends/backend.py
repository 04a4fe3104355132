"""The interface of a text backend, and the one that a configuration names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from diffuse.config.text_backend import check_text_backend, check_text_token, is_own_encoder
from diffuse.paths import user_path
from diffuse.schema import TextBackendConfig
from diffuse.text_backends.api import ApiTexts
from diffuse.text_backends.embeddings import TextNeeds, TextStates
from diffuse.text_backends.precomputed import PrecomputedTexts
from diffuse.text_backends.random_texts import RandomTexts

TOKEN_VARIABLE = "DIFFUSE_TEXT_TOKEN"


class TextBackend(Protocol):
    """Gives the embeddings of prompts in place of a model's own text encoder."""

    @property
    def name(self) -> str:
        """Is the option of the group `text_backend`."""
        ...

    @property
    def key(self) -> list[Any]:
        """Tells backends apart within a process; it may hold secrets."""
        ...

    def check(self, prompts: Sequence[str], needs: TextNeeds) -> list[str]:
        """Checks before anything is computed whether it can give the embeddings. Returns notes for the user.

        Raises:
            ConfigError: it cannot.
        """
        ...

    def encode(self, prompts: Sequence[str], needs: TextNeeds) -> list[TextStates]:
        """Returns the states `[T', D]` of each prompt.

        Raises:
            ConfigError: it has none of such a prompt, or they are of another model.
            RunError: it cannot be reached.
        """
        ...

    def as_record(self) -> dict[str, Any]:
        """Returns `name`, where the embeddings come from, and `text_encoder`, as far as it is known."""
        ...


def open_text_backend(config: TextBackendConfig) -> TextBackend | None:
    """Returns the backend that a configuration names; None where the model's own text encoder encodes.

    Raises:
        ConfigError: a setting is missing, or is none of the backend's.
    """
    check_text_backend(config)
    if is_own_encoder(config.name):
        return None
    if config.name == PrecomputedTexts.name:
        assert config.file is not None
        return PrecomputedTexts(user_path(config.file, "text_backend.file"), config.text_encoder_sha256)
    if config.name == ApiTexts.name:
        assert config.url is not None
        return ApiTexts(
            config.url,
            token=text_token(config),
            **{name: value for name in ("timeout", "retries") if (value := getattr(config, name)) is not None},
            text_encoder_sha256=config.text_encoder_sha256,
        )
    return RandomTexts(config.seed or 0)


def text_token(config: TextBackendConfig) -> str | None:
    """Returns the bearer token of the configuration or the environment; None where there is none.

    Raises:
        ConfigError: it is none that a header can carry.
    """
    name, token = "text_backend.token", config.token
    if not token:
        name, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if not token:
        return None
    check_text_token(name, token)
    return token
