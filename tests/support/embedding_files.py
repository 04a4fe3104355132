"""Files of textual inversion in the formats in circulation, of random vectors `[N, D]`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def vectors(count: int, width: int, seed: int = 0) -> Tensor:
    """Vectors as long as those of `oracle.randomise`."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def diffusers_file(path: Path, word: str, values: Tensor) -> Path:
    """What diffusers' training scripts save: a vector alone has no axis of vectors."""
    content = {word: values if len(values) > 1 else values[0]}
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def web_ui_file(path: Path, name: str, values: Tensor, *, first: bool = False) -> Path:
    """What AUTOMATIC1111's web UI saves; with `first`, what the first implementation of textual inversion does."""
    parameters = nn.ParameterDict({"*": nn.Parameter(values)}) if first else {"*": nn.Parameter(values)}
    more = {} if first else {"name": name, "step": 500, "sd_checkpoint": "81761151", "sd_checkpoint_name": "model"}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": parameters, **more}, path)
    return path


def parts_file(path: Path, first: Tensor, second: Tensor) -> Path:
    """What is saved for SDXL's two text encoders."""
    save_file({"clip_l": first, "clip_g": second}, path)
    return path
