"""The files on the hub that the fields `lora` and `embedding` of a configuration name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from diffuse.checkpoints.embedding.locate_embedding import EMBEDDING_KIND
from diffuse.checkpoints.lora.locate_lora import LORA_KIND
from diffuse.checkpoints.named_file import hub_file_source, local_file
from diffuse.checkpoints.source import Source
from diffuse.config.embedding import EMBEDDING, EMBEDDINGS_LIST
from diffuse.config.lora import LORA, LORA_LIST
from diffuse.schema import Download

FILE_KINDS = {LORA: LORA_KIND, EMBEDDING: EMBEDDING_KIND}
"""The files that each field may name."""


def listed_sources(cfg: DictConfig | Mapping[str, Any], consent: Download) -> list[Source]:
    """Returns the sources of the files that are on the hub, for `diffuse download`.

    Raises:
        ConfigError, CheckpointError: as `locate_file`.
    """
    sources = []
    for files in (LORA_LIST, EMBEDDINGS_LIST):
        kind = FILE_KINDS[files.name]
        for index, setting in enumerate(files.read_config(cfg)):
            where = f"{files.name}.{index}.source"
            if local_file(setting.source, where, kind) is None:
                sources.append(hub_file_source(setting.source, where, kind, consent))
    return sources
