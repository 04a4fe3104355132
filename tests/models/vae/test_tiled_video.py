"""Films in tiles of space and time: each seam, and what a tile must not change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ltx2_codec_peers import LATENTS, VIDEO, film, our_video, video_peer
from model_peers import noise
from torch import Tensor

from diffuse.models.vae.tiled_video import VideoTiling, decode_tiled, decoded_frames, encode_tiled


def nearest() -> Any:
    """An autoencoder that sees no neighbours: in tiles it has to give the very film, wherever they meet."""
    model: Any = our_video(video_peer("2.0"))

    def decode(z: Tensor, timestep: Any = None, generators: Any = None) -> Tensor:
        frames = z.repeat_interleave(8, dim=2)[:, :, 7:]  # of the first latent one frame
        return frames.repeat_interleave(32, dim=3).repeat_interleave(32, dim=4)

    def encode(x: Tensor) -> Any:
        found = x[:, :, ::8, ::32, ::32].clone()
        if not bool((x[:, :, 0] == FIRST).all()):
            found[:, :, 0] = torch.nan  # a tile's first latent is of one frame, which is not a film's first
        return SimpleNamespace(mode=lambda: found)

    model.decode, model.encode = decode, encode
    return model


FIRST = 5.0  # in every pixel of the first frame, from which a tile's is told
TILINGS = [
    VideoTiling(3, 1, 3, 1),
    VideoTiling(4, 2, 2, 1),
    VideoTiling(2, 0, 4, 3),
    VideoTiling(3, 2, 5, 2),
    VideoTiling(100, 8, 3, 2),
    VideoTiling(2, 1, 100, 1),
]


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("size", [(1, 3, 4), (2, 4, 3), (7, 5, 7), (8, 2, 9)], ids=str)
def test_every_frame_and_pixel_stays_in_its_place(tiling: VideoTiling, size: tuple[int, int, int]) -> None:
    model = nearest()
    latents = noise(1, 3, *size)
    whole = model.decode(latents)
    torch.testing.assert_close(decode_tiled(model, latents, tiling), whole)
    runs = list(decoded_frames(model, latents, tiling))
    torch.testing.assert_close(torch.cat(runs, dim=2), whole)
    longest = 8 * (tiling.frames - 1) + 1
    assert all(0 < run.shape[2] <= longest for run in runs)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_encoding_keeps_every_latent_in_its_place(tiling: VideoTiling) -> None:
    model = nearest()
    latents = noise(2, 3, 7, 5, 3)
    latents[:, :, 0] = FIRST
    torch.testing.assert_close(encode_tiled(model, model.decode(latents), tiling), latents)


@pytest.mark.parametrize("version", VIDEO)
def test_one_tile_is_the_whole_film(version: str) -> None:
    model = our_video(video_peer(version))
    latents, pixels = noise(2, LATENTS, 2, 2, 2), film(1, 9, 64, 64)
    tiling = VideoTiling(2, 1, 2, 1)
    assert tiling.covers(latents.shape) and not tiling.covers((3, 2, 2))
    torch.testing.assert_close(decode_tiled(model, latents, tiling), model.decode(latents), rtol=0, atol=1e-5)
    torch.testing.assert_close(encode_tiled(model, pixels, tiling), model.encode(pixels).mode(), rtol=0, atol=1e-5)


def test_tiles_are_close_to_the_whole_and_leave_no_seams() -> None:
    model = our_video(video_peer("2.0"))
    latents = noise(1, LATENTS, 4, 5, 2)  # of five latents beside each other, the last tile of two would have one
    whole, tiled = model.decode(latents), decode_tiled(model, latents, VideoTiling(4, 2, 3, 2))
    assert tiled.shape == whole.shape
    difference = (tiled - whole).abs()
    assert difference.mean() < 0.6 * whole.std()  # random weights look far beyond a tile; unlike films have 1.1
    frames, rows = difference.mean(dim=(0, 1, 3, 4)), difference.mean(dim=(0, 1, 2, 4))
    assert frames.max() < 4 * frames.mean() and rows.max() < 4 * rows.mean()


def test_noise_and_timestep_reach_the_tiles() -> None:
    model = our_video(video_peer("2.0", timestep_conditioning=True, decoder_inject_noise=(True,) * 4))
    latents, times = noise(1, LATENTS, 2, 3, 2), torch.tensor([0.1])

    def decoded(seed: int, timestep: Tensor = times) -> Tensor:
        generators = [torch.Generator().manual_seed(seed)]
        return decode_tiled(model, latents, VideoTiling(2, 1, 2, 1), timestep, generators)

    assert torch.equal(decoded(1), decoded(1))
    assert not torch.equal(decoded(1), decoded(2))
    assert not torch.equal(decoded(1), decoded(1, times + 0.5))


def test_tiles_of_the_memory_profiles() -> None:
    model = our_video(video_peer("2.0"))
    for (pixels, frames), expected in {
        (512, 16): VideoTiling(16, 2, 3, 1),
        (256, 8): VideoTiling(8, 1, 2, 1),
        (128, 4): VideoTiling(4, 1, 2, 1),
        (32, 80): VideoTiling(2, 1, 11, 3),
    }.items():
        assert VideoTiling.of_pixels(model, pixels, frames) == expected


@pytest.mark.parametrize(
    ("tiling", "named"),
    [
        ((4, 4, 3, 1), "overlap 4 must lie between 0 and one less than the tile, 4"),
        ((4, -1, 3, 1), "overlap -1"),
        ((4, 1, 3, 3), "frames_overlap 3"),
        ((4, 1, 1, 0), "share a latent in time"),
        ((0, 0, 3, 1), "the tile, 0"),
    ],
    ids=str,
)
def test_tiles_that_cannot_be_blended_are_refused(tiling: tuple[int, int, int, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VideoTiling(*tiling)
