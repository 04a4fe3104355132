"""Finds the LoRA files that a configuration names, on this machine or on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig

from diffuse.checkpoints.lora.lora_file import LoraFile
from diffuse.checkpoints.named_file import FileKind, locate_listed
from diffuse.config.lora import LORA, LORA_LIST, LoraSetting

LORA_KIND = FileKind(
    (".safetensors",),
    ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"),  # as diffusers and peft save them
    "is no .safetensors file; pickled LoRA files (.pt, .bin, .ckpt) are not read",
)
"""The files that `lora` may name."""


class NamedLora(NamedTuple):
    """A LoRA file, and how much of it is put on."""

    file: LoraFile
    setting: LoraSetting


def open_loras(cfg: DictConfig | Mapping[str, Any]) -> list[NamedLora]:
    """Opens the files that `lora` of a configuration names; their headers are checked.

    Raises:
        ConfigError: a setting is wrong, or a file may not be fetched.
        CheckpointError: a file is not there, or no LoRA.
    """
    return [
        NamedLora(LoraFile.open(found.path, setting.source, found.revision), setting)
        for setting, _, found in locate_listed(cfg, LORA_LIST, LORA_KIND)
    ]


def lora_record(loras: Sequence[NamedLora]) -> dict[str, Any]:
    """Returns the record of LoRA files by their number, as text; empty where there are none."""
    return {LORA: {str(index): each.file.record() for index, each in enumerate(loras)}} if loras else {}
