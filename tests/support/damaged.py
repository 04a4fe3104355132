"""A checkpoint that ends a run in the middle: no check beforehand sees what is wrong with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffuse.config.groups import TINY


def damaged(folder: Path) -> Path:
    """The tiny checkpoint in `folder`, with a VAE that gives NaN."""
    shutil.copytree(TINY, folder, copy_function=os.symlink)
    file = _vae(folder)
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"] = torch.full_like(tensors["decoder.conv_out.bias"], float("nan"))
    file.unlink()
    save_file(tensors, file)
    return folder


def mend(folder: Path) -> None:
    """Has a damaged checkpoint be the tiny one again."""
    file = _vae(folder)
    file.unlink()
    shutil.copy(_vae(TINY), file)


def _vae(folder: Path) -> Path:
    (file,) = (folder / "vae").glob("*.safetensors")
    return file
