"""Finds the LoRA files of a record on this machine: those that were read then, by their SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.folder import file_digest
from diffuse.checkpoints.safetensors_file import unreadable
from diffuse.config.lora import read_lora
from diffuse.errors import CheckpointError, ConfigError
from diffuse.record.recorded_run import RecordedRun


def restore_loras(cfg: DictConfig, recorded: RecordedRun, own: Mapping[str, str]) -> list[str]:
    """Sets the LoRA files of a recorded run, with all fields by name. Returns a line for each that is another one.

    Args:
        cfg: the run's configuration.
        recorded: the run.
        own: files that the user gives, by the names of their overrides, such as `lora.0.source`.

    Raises:
        ConfigError: the record's settings are wrong, or a file is given for one that the run has not.
        CheckpointError: a file is missing, or another one.
    """
    value = OmegaConf.to_container(cfg.lora) if OmegaConf.is_config(cfg.lora) else cfg.lora
    try:
        files = [each.as_values() for each in read_lora(value)]
    except ConfigError as error:
        raise ConfigError(f"{recorded.label}: {error}") from None
    for name in own:
        if not any(name == f"lora.{index}.source" for index in range(len(files))):
            raise ConfigError(f"{name}={own[name]}: the run has {len(files)} LoRA files; leave it out")
    notes = []
    entries = recorded.record["weights"].get("lora")
    for index, values in enumerate(files):
        name = f"lora.{index}.source"
        given = own.get(name)
        entry: Any = entries.get(str(index)) if isinstance(entries, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        source = values["source"] if given is None else given
        if given is None and source.startswith(("//", "\\\\")):
            raise CheckpointError(f"{name}={source}: is on another computer; copy it and add {name}=FILE")
        fault = _fault(source, name, sha256)
        if fault and given is None:
            advice = f"give the file that it was made with: {name}=FILE"
            raise CheckpointError(f"{recorded.label}: {name}={source}: {fault}; {advice}")
        if fault:
            notes.append(f"{name}={source}: {fault}")
        values["source"] = source
    cfg.lora = files or None
    return notes


def _fault(source: str, name: str, sha256: Any) -> str:
    """Returns what is wrong with a file; nothing where it is the one with this SHA-256."""
    from diffuse.checkpoints.lora.locate_lora import lora_path  # imports torch, which a refusal needs not

    try:
        path = lora_path(source, name)
    except CheckpointError:
        return "there is no such file"
    try:
        digest = file_digest(path)
    except OSError as error:
        raise unreadable(source, error) from None
    return "" if digest == sha256 else "is another file now (its SHA-256 differs)"
