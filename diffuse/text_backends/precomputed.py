"""Embeddings from a file that `diffuse encode` has written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from diffuse.errors import ConfigError
from diffuse.text_backends.embeddings import Embeddings, TextNeeds, TextStates, check_encoder, check_states
from diffuse.text_backends.forms import read_embeddings_file

_KNOWN_SHOWN = 3


class PrecomputedTexts:
    """The embeddings of one file. It is read when it is first needed, once."""

    name = "precomputed"

    def __init__(self, path: Path, text_encoder_sha256: str | None = None) -> None:
        self.path, self.sha256 = path, text_encoder_sha256
        self.where = f"text_backend.file={path}"

    @property
    def key(self) -> list[Any]:
        """All that determines the embeddings, as far as a process can tell without reading them."""
        state = self._state()
        return [self.name, str(self.path), *([] if state is None else [*state, self.sha256])]

    @cached_property
    def embeddings(self) -> Embeddings:
        """The content of the file.

        Raises:
            ConfigError: it is not there, or is no such file.
        """
        return self._content[0]

    def check(self, prompts: Sequence[str], needs: TextNeeds) -> list[str]:
        """Checks that the file has the prompts, made by the model's own text encoder. Returns notes for the user.

        Raises:
            ConfigError: it has not.
        """
        found = self.embeddings
        check_states(found.states[:1], 1, needs, self.where)
        note = check_encoder(found.encoder, needs, self.where, self.sha256)
        for prompt in prompts:
            if prompt.strip() not in self._places:
                shown = ", ".join(repr(each) for each in found.prompts[:_KNOWN_SHOWN])
                more = f" and {len(found.prompts) - _KNOWN_SHOWN} more" if len(found.prompts) > _KNOWN_SHOWN else ""
                raise ConfigError(
                    f"{self.where}: has no embeddings of {prompt.strip()!r}; it has {shown}{more}; diffuse encode "
                    "writes a file with others"
                )
        states = [found.states[self._places[prompt.strip()]] for prompt in prompts]
        check_states(states, len(prompts), needs, self.where)
        return [] if note is None else [note]

    def encode(self, prompts: Sequence[str], needs: TextNeeds) -> list[TextStates]:
        """Returns the states `[T', D]` of each prompt.

        Raises:
            ConfigError: see `check`.
        """
        self.check(prompts, needs)
        return [self.embeddings.states[self._places[prompt.strip()]] for prompt in prompts]

    def as_record(self) -> dict[str, Any]:
        """Returns the file and its SHA-256, and who made the embeddings, for the record."""
        encoder = self.embeddings.encoder.as_json()
        return {"name": self.name, "file": str(self.path), "sha256": self._content[1], "text_encoder": encoder}

    @cached_property
    def _content(self) -> tuple[Embeddings, str]:
        """The content of the file, and the SHA-256 of what was read: it may be another by the time of the record."""
        before = self._state()
        embeddings = read_embeddings_file(self.path, self.where)
        try:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(
                f"{self.where}: cannot be read: {error.strerror}; give a file of diffuse encode"
            ) from None
        if self._state() != before:
            raise ConfigError(f"{self.where}: was changed while it was read; run it again")
        return embeddings, digest

    def _state(self) -> tuple[int, ...] | None:
        """Returns what changes with the file's content; None where there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns, status.st_ino

    @cached_property
    def _places(self) -> dict[str, int]:
        return {prompt.strip(): index for index, prompt in enumerate(self.embeddings.prompts)}
