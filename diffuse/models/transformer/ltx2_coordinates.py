"""The places of a film's tokens and of its sound's, in seconds and pixels, by which alone LTX-2 tells them apart.

A token's place is the middle of what it covers. Sound and picture share the axis of time. The first frame of each is
made from itself alone, so what follows is earlier than the compression says, by all but `causal_offset` of its steps.
Places are made in float32 on the CPU, so that they are the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def video_coordinates(
    frames: int,
    height: int,
    width: int,
    *,
    fps: float,
    scale_factors: tuple[int, int, int] = (8, 32, 32),
    causal_offset: int = 1,
) -> Tensor:
    """Returns the places `[T, 3]` of a film's tokens: seconds, rows and columns of pixels.

    `frames`, `height` and `width` are of the latents, of which a token is one value, columns fastest; `scale_factors`
    are the pixels of each along these axes.
    """
    begin, end = _bounds(frames, scale_factors[0], causal_offset)
    return _grid((begin / fps + end / fps) / 2, height, width, scale_factors)


def keyframe_coordinates(
    frames: int,
    height: int,
    width: int,
    *,
    fps: float,
    index: int,
    single: bool,
    scale_factors: tuple[int, int, int] = (8, 32, 32),
) -> Tensor:
    """Returns the places `[T, 3]` of tokens that are appended to a film's as a condition.

    They begin at frame `index` of the pixels. A `single` image covers one frame, and a clip all of its own. See
    `video_coordinates` for the rest.
    """
    begin = torch.arange(frames, dtype=torch.float32, device="cpu") * scale_factors[0] + index
    end = begin + (1 if single else scale_factors[0])
    return _grid((begin / fps + end / fps) / 2, height, width, scale_factors)


def audio_coordinates(
    frames: int,
    *,
    scale_factor: int = 4,
    hop_length: int = 160,
    sampling_rate: int = 16000,
    causal_offset: int = 1,
) -> Tensor:
    """Returns the places `[T, 1]` of a sound's tokens, in seconds.

    A token is one of `frames` of the latents, which is `scale_factor` frames of the mel spectrogram.
    """
    begin, end = (edge * hop_length / sampling_rate for edge in _bounds(frames, scale_factor, causal_offset))
    return ((begin + end) / 2)[:, None]


def _bounds(frames: int, scale: int, causal_offset: int) -> tuple[Tensor, Tensor]:
    """Returns where each of the latents' frames begins and ends, in frames of what was compressed."""
    edges = torch.arange(frames + 1, dtype=torch.float32, device="cpu") * scale
    edges = (edges + causal_offset - scale).clamp(min=0)
    return edges[:-1], edges[1:]


def _grid(seconds: Tensor, height: int, width: int, scale_factors: tuple[int, int, int]) -> Tensor:
    rows, columns = (
        (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) * scale
        for count, scale in zip((height, width), scale_factors[1:], strict=True)
    )
    return torch.stack(torch.meshgrid(seconds, rows, columns, indexing="ij"), dim=-1).flatten(0, 2)
