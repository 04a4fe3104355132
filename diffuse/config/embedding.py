"""The textual inversions that a configuration asks for: `embedding=FILE`, or a list of files or of fields by name.

Each has `source`, and `token`, the word that stands for it in prompts. No torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diffuse.config.file_lists import FileList, check_fields, check_source, typed_text
from diffuse.errors import ConfigError

EMBEDDING = "embedding"
_FIELDS = ("source", "token")
_LONGEST = 200  # of a word


@dataclass(frozen=True)
class EmbeddingSetting:
    """One file of a textual inversion, and the word that stands for it."""

    source: str
    token: str | None = None  # None: the file's own

    def short(self) -> str:
        """Returns the setting as one types it: the file, or with its fields where the word is given."""
        if self.token is None:
            return self.source
        return f"{{source: {typed_text(self.source)}, token: {typed_text(self.token)}}}"

    def as_values(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)


def _read_one(item: Any, where: str) -> EmbeddingSetting:
    if isinstance(item, str):
        item = {"source": item}
    item = check_fields(item, where, "FILE, or '{source: FILE, token: \"<word>\"}'", _FIELDS, "an embedding")
    source = check_source(item.get("source"), where, EMBEDDINGS_LIST.example)
    token = item.get("token")
    if token is not None:
        check_word(token, f"{where}.token")
    return EmbeddingSetting(source, token)


def check_word(token: Any, where: str) -> None:
    """Checks a word that stands for an embedding in prompts.

    Raises:
        ConfigError: it is none.
    """
    is_word = isinstance(token, str) and token and token == token.strip() and token.isprintable()
    if not is_word or len(token) > _LONGEST:
        raise ConfigError(f'{where}={token!s:.80}: should be a word for prompts, such as "<cat>"')


EMBEDDINGS_LIST = FileList(EMBEDDING, _FIELDS, _read_one, "embedding=FILE", 'token: "<word>"', "embeddings")
"""The field `embedding`."""
