"""Small checkpoints of one component, written to a folder, for the tests of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import load_weights
from diffuse.errors import CheckpointError


class Net(nn.Module):
    """Small, with the kinds of tensor that matter: weights, a bias, a norm, a persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8, momentum=None)
        del self.norm.num_batches_tracked
        self.out = nn.Linear(8, 5, bias=False)


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=generator).to(dtype) for key, value in Net().state_dict().items()}


def checkpoint(folder: Path, files: Mapping[str, Any], component: str = "unet", **options: Any) -> CheckpointFolder:
    """A checkpoint of one component: tensors become safetensors files, dicts JSON, bytes are written as they are."""
    (folder / component).mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", component: ["diffusers", "X"]}))
    for name, content in {"config.json": {}, **files}.items():
        path = folder / component / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif any(isinstance(value, Tensor) for value in content.values()):
            save_file(content, path)
        else:
            path.write_text(json.dumps(content))
    return CheckpointFolder.open(folder, **options)


def fill(found: CheckpointFolder, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    return load_weights(Net, found, "unet", device="cpu", dtype=dtype, **options)


def message(action: Callable[[], Any]) -> str:
    """The one line an error is told in."""
    with pytest.raises(CheckpointError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


WHOLE = "diffusion_pytorch_model.safetensors"


def sharded(variant: str = "", style: str = "before") -> dict[str, Any]:
    source = tensors(torch.float16 if variant else torch.float32)
    keys = list(source)
    dot = f".{variant}" if variant else ""
    names = [
        f"model{dot if style == 'before' else ''}-0000{i}-of-00002{dot if style == 'after' else ''}.safetensors"
        for i in (1, 2)
    ]
    parts = [{key: source[key] for key in keys[i::2]} for i in (0, 1)]
    index = {"metadata": {}, "weight_map": {key: names[i] for i in (0, 1) for key in parts[i]}}
    index_name = f"model.safetensors.index{dot}.json" if style == "before" else f"model.safetensors{dot}.index.json"
    return {names[0]: parts[0], names[1]: parts[1], index_name: index}
