"""Finds the LoRA files that a configuration names, on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.lora.lora_file import LoraFile
from diffuse.checkpoints.safetensors_file import unreadable
from diffuse.config.lora import LoraSetting, read_lora
from diffuse.errors import CheckpointError
from diffuse.paths import user_path

_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # as diffusers and peft save them
_SUFFIX = ".safetensors"


class NamedLora(NamedTuple):
    """A LoRA file, and how much of it is put on."""

    file: LoraFile
    setting: LoraSetting


def open_loras(cfg: DictConfig | Mapping[str, Any]) -> list[NamedLora]:
    """Opens the files that `lora` of a configuration names; their headers are checked.

    Raises:
        ConfigError: a setting is wrong.
        CheckpointError: a file is not there, or no LoRA.
    """
    value = cfg["lora"]
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    named = []
    for index, setting in enumerate(read_lora(plain)):
        path = lora_path(setting.source, f"lora.{index}.source")
        named.append(NamedLora(LoraFile.open(path, setting.source), setting))
    return named


def lora_record(loras: Sequence[NamedLora]) -> dict[str, Any]:
    """Returns the record of LoRA files by their number, as text; empty where there are none."""
    return {"lora": {str(index): each.file.record() for index, each in enumerate(loras)}} if loras else {}


def lora_path(source: str, setting: str) -> Path:
    """Returns the path of the file that a source names, which may be the folder that it is in.

    Raises:
        CheckpointError: there is no such file, or it is not one of safetensors.
    """
    path = user_path(source, setting)
    try:
        if path.is_dir():
            return _file_in(path, source, setting)
        is_file = path.is_file()
    except OSError as error:
        raise unreadable(source, error) from None
    if not is_file:
        hub = source.count("/") in (1, 2) and not source.startswith(("/", ".", "~")) and not path.parent.is_dir()
        advice = "a LoRA on the hub is not fetched: download it, and" if hub else "copy it there, or"
        raise CheckpointError(
            f"{setting}={source}: there is no such file; {advice} give a {_SUFFIX} file of this machine"
        )
    if path.suffix.lower() != _SUFFIX:
        raise CheckpointError(
            f"{setting}={source}: is no {_SUFFIX} file; pickled LoRA files (.pt, .bin, .ckpt) are not read"
        )
    return path


def _file_in(folder: Path, source: str, setting: str) -> Path:
    files = sorted(each.name for each in folder.iterdir() if each.suffix.lower() == _SUFFIX)
    chosen = next((name for name in _NAMES if name in files), files[0] if len(files) == 1 else None)
    if chosen is None:
        has = f"has {', '.join(files[:5])}" if files else f"has no {_SUFFIX} file"
        raise CheckpointError(f"{setting}={source}: is a folder that {has}; give one file")
    return folder / chosen
