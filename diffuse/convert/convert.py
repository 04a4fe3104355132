"""Converts a checkpoint: checks all, then writes under a temporary name, and gives the result its own at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import diffuse
from diffuse.checkpoints.checkpoint import checkpoint_record
from diffuse.checkpoints.hub.progress import readable_size
from diffuse.convert.arguments import PRECISIONS, ConvertArguments
from diffuse.convert.checkpoint_content import CheckpointContent, open_content
from diffuse.convert.diffusers_folder import write_folder
from diffuse.convert.ldm_file import check_ldm_file, ldm_metadata, ldm_tensors, write_ldm_file
from diffuse.errors import ConfigError, RunError
from diffuse.media.files import reason, write_new
from diffuse.terminal import say

_CARD = """\
---
library_name: diffusers
tags:
- {task}
---

# {title}

Converted by diffuse {version}, precision: {precision}. The weights are those of:

| component | source | SHA-256 |
|---|---|---|
{rows}

Their licence is that of these sources.
"""


def convert(arguments: ConvertArguments, cfg: DictConfig) -> Path:
    """Writes the checkpoint of a configuration as a folder or a file, and returns its path.

    Raises:
        ConfigError, CheckpointError: the checkpoint cannot be used, or not be written in this form; or the target
            exists.
        RunError: it could not be written; nothing of it is left.
    """
    content = open_content(cfg, arguments.precision)
    if content.is_film and arguments.single:
        raise ConfigError(
            f"{arguments.target}: a model of films is written as a folder only; name one without .safetensors"
        )
    for note in content.checkpoint.notes:
        say(note)
    sources = list(_sources(checkpoint_record(content.checkpoint), "all"))
    room = shutil.disk_usage(arguments.target.parent).free
    if content.nbytes > room:
        raise ConfigError(
            f"{arguments.target}: needs {readable_size(content.nbytes)}, and its disk has {readable_size(room)} free; "
            "make room, or name another place"
        )
    try:
        if arguments.single:
            _write_file(arguments.target, content, sources)
        else:
            _say_begun(content)
            card = _card(arguments, sources, "text-to-video" if content.is_film else "text-to-image")
            write_new(
                lambda folder: write_folder(folder, content, arguments.shard_bytes, card), arguments.target, folder=True
            )
    except FileExistsError:
        raise ConfigError(f"{arguments.target}: was made by another meanwhile and is not overwritten") from None
    except OSError as error:
        raise RunError(f"{arguments.target} could not be written: {reason(error)}; nothing of it was left") from error
    return arguments.target


def _write_file(target: Path, content: CheckpointContent, sources: list[tuple[str, str, str]]) -> None:
    tensors, metadata = ldm_tensors(content), ldm_metadata(content)
    again, others = check_ldm_file(content, tensors, metadata)
    if again:
        say(f"a single file does not hold {', '.join(again)}: give them again when you use it")
    if others:
        say(f"a single file does not hold {', '.join(others)}: name a folder to write where that matters")
    _say_begun(content)
    origin = "; ".join(f"{name}={source}@{digest}" for name, source, digest in sources)
    metadata |= {"modelspec.title": target.stem, "diffuse.version": diffuse.__version__, "diffuse.source": origin}
    # Names of files may be other bytes than UTF-8, of which a header is.
    metadata = {name: value.encode("utf-8", "replace").decode() for name, value in metadata.items()}
    write_new(lambda path: write_ldm_file(path, tensors, metadata), target, folder=False)


def _say_begun(content: CheckpointContent) -> None:
    say(f"writing {readable_size(content.nbytes)}: {', '.join(content.tensors)}")


def _sources(record: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, str]]:
    """Yields for the checkpoint, and for each component of another, its name, source and digest."""
    revision = f" at {record['revision']}" if record["revision"] else ""
    yield name, f"{record['source']}{revision}", record["sha256"]
    for part, each in record.get("components", {}).items():
        yield from _sources(each, part)


def _card(arguments: ConvertArguments, sources: list[tuple[str, str, str]], task: str) -> str:
    """Returns the text of the model card."""
    names = {stored: name for name, stored in PRECISIONS.items()}
    precision = names[arguments.precision] if arguments.precision else "as stored"
    rows = "\n".join(f"| {name} | `{source}` | `{digest}` |" for name, source, digest in sources)
    title, version = arguments.target.name, diffuse.__version__
    return _CARD.format(title=title, version=version, precision=precision, rows=rows, task=task)
