"""The places of tokens, against diffusers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed as Peer
from torch import Tensor

from diffuse.models.transformer.ltx2_coordinates import audio_coordinates, keyframe_coordinates, video_coordinates


def middles(bounds: Tensor) -> Tensor:
    """From `[1, axes, T, 2]` to `[T, axes]`."""
    return bounds.mean(dim=-1)[0].T


@pytest.mark.parametrize("fps", [24.0, 29.97, 8.0])
@pytest.mark.parametrize("options", [{}, {"scale_factors": (4, 16, 8), "causal_offset": 3}, {"causal_offset": 0}])
def test_places_of_a_film_are_those_of_diffusers(fps: float, options: dict[str, Any]) -> None:
    expected = middles(Peer(dim=64, **options).prepare_video_coords(1, 5, 3, 2, torch.device("cpu"), fps=fps))
    found = video_coordinates(5, 3, 2, fps=fps, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale_factor": 2, "hop_length": 100, "sampling_rate": 8000, "causal_offset": 0}, {"sampling_rate": 44100}],
)
def test_places_of_a_sound_are_those_of_diffusers(options: dict[str, Any]) -> None:
    theirs = {key: value for key, value in options.items() if key != "scale_factor"}
    peer = Peer(dim=64, scale_factors=(options.get("scale_factor", 4),), modality="audio", **theirs)
    expected = middles(peer.prepare_audio_coords(1, 126, torch.device("cpu")))
    torch.testing.assert_close(audio_coordinates(126, **options), expected, rtol=0, atol=0)


def test_the_first_frame_is_one_of_the_pixels() -> None:
    assert video_coordinates(3, 1, 1, fps=1.0).tolist() == [[0.5, 16, 16], [5.0, 16, 16], [13.0, 16, 16]]
    # Of four mel frames, 40 ms, the first token has one, and the second follows at once.
    assert audio_coordinates(3)[:, 0].tolist() == pytest.approx([0.005, 0.03, 0.07])


def test_columns_run_fastest() -> None:
    places = video_coordinates(2, 2, 3, fps=1.0)
    assert places[:4].tolist() == [[0.5, 16, 16], [0.5, 16, 48], [0.5, 16, 80], [0.5, 48, 16]]
    assert places[6].tolist() == [5.0, 16, 16]


def test_places_of_a_keyframe() -> None:
    single = keyframe_coordinates(1, 1, 2, fps=4.0, index=9, single=True)
    assert single.tolist() == [[9.5 / 4, 16, 16], [9.5 / 4, 16, 48]]
    clip = keyframe_coordinates(2, 1, 1, fps=4.0, index=9, single=False)
    assert clip.tolist() == [[13 / 4, 16, 16], [21 / 4, 16, 16]]
