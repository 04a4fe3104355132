"""Finds the textual inversions that a configuration names, on this machine or on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from omegaconf import DictConfig

from diffuse.checkpoints.embedding.embedding_file import EmbeddingFile
from diffuse.checkpoints.named_file import FileKind, locate_listed
from diffuse.config.embedding import EMBEDDING, EMBEDDINGS_LIST, check_word

EMBEDDING_KIND = FileKind(
    (".safetensors", ".bin", ".pt"),
    ("learned_embeds.safetensors", "learned_embeds.bin"),  # as diffusers saves them
    "is no .safetensors, .bin or .pt file, as embeddings are; give one",
)
"""The files that `embedding` may name."""


class NamedEmbedding(NamedTuple):
    """A textual inversion, and the word that stands for it in prompts."""

    file: EmbeddingFile
    word: str


def open_embeddings(cfg: DictConfig | Mapping[str, Any]) -> list[NamedEmbedding]:
    """Opens the files that `embedding` of a configuration names; no vector is read.

    Raises:
        ConfigError: a setting is wrong, or a file may not be fetched.
        CheckpointError: a file is not there, or no textual inversion.
    """
    named = []
    for setting, place, found in locate_listed(cfg, EMBEDDINGS_LIST, EMBEDDING_KIND):
        file = EmbeddingFile.open(found.path, setting.source, found.revision)
        word = setting.token or file.word or PurePosixPath(found.path.name).stem
        check_word(word, f"{place}.token")
        named.append(NamedEmbedding(file, word))
    return named


def embedding_record(embeddings: Sequence[NamedEmbedding]) -> dict[str, Any]:
    """Returns the record of textual inversions by their number, as text; empty where there are none."""
    if not embeddings:
        return {}
    return {EMBEDDING: {str(index): each.file.record() for index, each in enumerate(embeddings)}}
