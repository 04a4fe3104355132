"""Finds the LoRA files and embeddings of a record: those that were read then, by their SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.folder import file_digest
from diffuse.checkpoints.layout import ADAPTER_CONFIG
from diffuse.checkpoints.safetensors_file import unreadable
from diffuse.config.file_lists import FileList
from diffuse.config.quoting import FILE_LISTS
from diffuse.errors import CheckpointError, ConfigError
from diffuse.record.recorded_run import RecordedRun


def restore_files(cfg: DictConfig, recorded: RecordedRun, own: Mapping[str, str]) -> list[str]:
    """Sets the files of a recorded run, with all fields by name. Returns a line for each that is another one.

    Args:
        cfg: the run's configuration.
        recorded: the run.
        own: files that the user gives, by the names of their overrides, such as `lora.0.source`.

    Raises:
        ConfigError: the record's settings are wrong, or a file is given for one that the run has not.
        CheckpointError: a file is missing, or another one.
    """
    notes: list[str] = []
    for name, files in FILE_LISTS.items():
        given = {key: value for key, value in own.items() if key.startswith(f"{name}.")}
        notes += _restore(files, cfg, recorded, given)
    return notes


def _restore(files: FileList, cfg: DictConfig, recorded: RecordedRun, own: Mapping[str, str]) -> list[str]:
    value = cfg[files.name]
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    try:
        listed = [each.as_values() for each in files.read(plain)]
    except ConfigError as error:
        raise ConfigError(f"{recorded.label}: {error}") from None
    for name in own:
        if not any(name == f"{files.name}.{index}.source" for index in range(len(listed))):
            raise ConfigError(f"{name}={own[name]}: the run has {len(listed)} {files.words}; leave it out")
    notes = []
    entries = recorded.record["weights"].get(files.name)
    for index, values in enumerate(listed):
        name = f"{files.name}.{index}.source"
        given = own.get(name)
        entry: Any = entries.get(str(index)) if isinstance(entries, dict) else None
        entry = entry if isinstance(entry, dict) else {}
        source = values["source"] if given is None else given
        if given is not None and given.strip() in ("", "null"):
            raise ConfigError(f"{name}={given}: should be a file; leave it out for the recorded one")
        if given is None and source.startswith(("//", "\\\\")):
            raise CheckpointError(f"{name}={source}: is on another computer; copy it and add {name}=FILE")
        if given is None:
            source = _at_commit(source, entry.get("revision"))
        fault = _fault(source, name, files.name, entry, cfg, is_own=given is not None)
        if fault and given is None:
            advice = f"give the file that it was made with: {name}=FILE"
            raise CheckpointError(f"{recorded.label}: {name}={source}: {fault}; {advice}")
        if fault:
            notes.append(f"{name}={source}: {fault}")
        values["source"] = source
    cfg[files.name] = listed or None
    return notes


def _at_commit(source: str, revision: Any) -> str:
    """Returns the source of a file on the hub at the commit that was read; that of another file as it is."""
    from diffuse.checkpoints.named_file import at_revision

    return at_revision(source, revision) if isinstance(revision, str) else source


def _fault(source: str, name: str, kind: str, entry: Mapping[str, Any], cfg: DictConfig, *, is_own: bool) -> str:
    """Returns what is wrong with a file; nothing where it is the one with the SHA-256 of its entry in the record.

    Raises:
        CheckpointError: the user's own file is not there.
    """
    # These import torch, which a refusal needs not.
    from diffuse.checkpoints.listed_files import FILE_KINDS
    from diffuse.checkpoints.named_file import download_command, locate_file

    command = download_command(cfg, kind, source)
    try:
        path = locate_file(source, name, FILE_KINDS[kind], cfg.model.download, command).path
    except CheckpointError as error:
        if is_own:
            raise
        fault = str(error).removeprefix(f"{name}={source}: ")
        return fault.partition("; ")[0] if fault.startswith("there is no such file") else fault
    settings, beside = entry.get("adapter_config"), path.with_name(ADAPTER_CONFIG)
    try:
        if file_digest(path) != entry.get("sha256"):
            return "is another file now (its SHA-256 differs)"
        if not isinstance(settings, dict):
            return ""
        if not beside.is_file():
            return f"has no {ADAPTER_CONFIG} beside it now"
        same = file_digest(beside) == settings.get("sha256")
    except OSError as error:
        raise unreadable(source, error) from None
    return "" if same else f"has another {ADAPTER_CONFIG} beside it now (its SHA-256 differs)"
