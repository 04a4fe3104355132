"""Calls of an image autoencoder, whole or in the tiles of the memory profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from diffuse.device.compile import uncompiled
from diffuse.device.memory import Memory


def decode_image(vae: Any, z: Tensor, memory: Memory, name: str) -> Tensor:
    """Decodes the autoencoder's latents `[B, C, h, w]` to pixels `[B, 3, H, W]`, in tiles where the profile says so.

    Args:
        vae: the module.
        name: its name in `memory`.
    """
    pixels: Tensor = _in_tiles(vae.decode_tiled, z, memory, name) if memory.tiled_decode else vae.decode(z)
    return pixels


def encode_image(vae: Any, pixels: Tensor, memory: Memory, name: str) -> Any:
    """Encodes pixels `[B, 3, H, W]` as the autoencoder's distribution of latents; see `decode_image`."""
    tiled = memory.profile.tiled_encode
    return _in_tiles(vae.encode_tiled, pixels, memory, name) if tiled else vae.encode(pixels)


def _in_tiles(method: Callable[..., Any], x: Tensor, memory: Memory, name: str) -> Any:
    profile = memory.profile
    if profile.vae_tile_overlap is not None:
        return method(x, profile.vae_tile_size, profile.vae_tile_overlap)
    with uncompiled(memory.hw):  # blocks are compiled for whole maps
        return method(x, profile.vae_tile_size, None, memory.store(name))
