"""Independent tiles, blended where they meet."""

from __future__ import annotations

import oracle
import pytest
import torch
import torch.nn.functional as F
from model_peers import noise, ours
from oracle import Variant

from diffuse.models.vae.tiles import blend_tiles


@pytest.mark.parametrize("size", [(48, 40), (17, 50), (9, 24)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 8), (8, 6), (8, 1)])
def test_tiles_of_what_knows_no_neighbours_are_the_whole(size: tuple[int, int], tile: int, overlap: int) -> None:
    x = noise(1, 2, *size)
    larger = blend_tiles(x, tile, overlap, (2, 1), lambda part: F.interpolate(part, scale_factor=2.0))
    torch.testing.assert_close(larger, F.interpolate(x, scale_factor=2.0))
    pixels = noise(1, 3, size[0] * 4 + 3, size[1] * 4 + 1)
    smaller = blend_tiles(pixels, tile * 4, overlap * 4, (1, 4), lambda part: F.avg_pool2d(part, 4))
    torch.testing.assert_close(smaller, F.avg_pool2d(pixels, 4))


def test_a_picture_encoded_in_tiles_is_close_to_the_whole() -> None:
    model = ours("vae", oracle.vae(Variant(vae_channels=(8, 16))))
    pixels = noise(2, 3, 97, 83).clamp(-1, 1)
    whole, tiled = model.encode(pixels).mean, model.encode_tiled(pixels, 24, 8).mean
    assert tiled.shape == whole.shape
    difference = (tiled - whole).abs()
    assert 0 < difference.mean() < 0.1 * whole.std()


@pytest.mark.parametrize(("tile", "overlap"), [(4, 4), (4, 5), (4, 0), (4, -1)])
def test_tiles_that_do_not_advance_are_refused(tile: int, overlap: int) -> None:
    model = ours("vae", oracle.vae(Variant(vae_channels=(8, 16))))
    for call in (model.decode_tiled, model.encode_tiled):
        with pytest.raises(ValueError, match="overlap"):
            call(noise(1, 4, 8, 8), tile, overlap)
