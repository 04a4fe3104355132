"""The autoencoder against diffusers', whole and in tiles."""

from __future__ import annotations

import oracle
import pytest
import torch
from diffusers import AutoencoderKL as PeerVAE
from model_peers import FLOAT32, noise, ours
from oracle import Variant

VAES = {
    "four levels": Variant(),
    "two levels": Variant(vae_channels=(8, 16)),
    "one level": Variant(vae_channels=(16,)),
}


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_vae_agrees_with_diffusers(name: str, size: tuple[int, int]) -> None:
    variant = VAES[name]
    peer = oracle.vae(variant)
    model = ours("vae", peer)
    latents = noise(2, 4, *size) * 5
    expected = peer.decode(latents).sample
    assert expected.std() > 0.2
    torch.testing.assert_close(model.decode(latents), expected, **FLOAT32)
    pixels = noise(2, 3, size[0] * variant.pixels, size[1] * variant.pixels).clamp(-1, 1)
    theirs, mine = peer.encode(pixels).latent_dist, model.encode(pixels)
    torch.testing.assert_close(mine.mode(), theirs.mode(), **FLOAT32)
    torch.testing.assert_close(mine.logvar, theirs.logvar, **FLOAT32)


def test_vae_encodes_pixels_that_latents_do_not_divide() -> None:
    peer = oracle.vae(VAES["four levels"])
    pixels = noise(1, 3, 37, 50).clamp(-1, 1)
    torch.testing.assert_close(ours("vae", peer).encode(pixels).mean, peer.encode(pixels).latent_dist.mean, **FLOAT32)


def test_vae_without_its_optional_parts() -> None:
    peer = PeerVAE(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=2,
        latent_channels=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()
    oracle.randomise(peer, 0)
    model = ours("vae", peer)
    torch.testing.assert_close(model.decode(noise(1, 8, 6, 6)), peer.decode(noise(1, 8, 6, 6)).sample, **FLOAT32)
    pixels = noise(1, 3, 12, 12)
    torch.testing.assert_close(model.encode(pixels).mean, peer.encode(pixels).latent_dist.mean, **FLOAT32)


def test_a_latent_drawn_from_the_encoders_distribution_is_diffusers_own() -> None:
    peer = oracle.vae(VAES["two levels"])
    pixels = noise(1, 3, 16, 16).clamp(-1, 1)
    expected = peer.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(7))
    mine = ours("vae", peer).encode(pixels)
    torch.testing.assert_close(mine.sample([torch.Generator().manual_seed(7)]), expected, **FLOAT32)


def test_a_picture_decoded_in_a_batch_is_the_picture_decoded_alone() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    latents = noise(3, 4, 8, 8) * 5
    whole = model.decode(latents)
    assert whole.shape == (3, 3, 16, 16)
    for i in range(3):
        # Some processors have other kernels for other batch sizes, and sum in another order.
        torch.testing.assert_close(whole[i : i + 1], model.decode(latents[i : i + 1]), rtol=0, atol=1e-5)


def test_one_tile_is_the_whole_picture() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    latents = noise(2, 4, 8, 6) * 5
    tiled = model.decode_tiled(latents, tile=8, overlap=2)
    torch.testing.assert_close(tiled, model.decode(latents), rtol=0, atol=1e-5)


def test_tiles_are_close_to_the_whole_and_leave_no_seams() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    # Each tile's norms see that tile alone, so a picture with the same statistics everywhere is what can agree.
    latents = noise(1, 4, 48, 40) * 5
    whole, tiled = model.decode(latents), model.decode_tiled(latents, tile=24, overlap=8)
    assert tiled.shape == whole.shape
    difference = (tiled - whole).abs()
    assert difference.mean() < 0.1 * whole.std()
    middle = difference[..., 2:-2, 2:-2]  # no worse where tiles meet than elsewhere
    assert middle.mean(dim=(0, 1, 3)).max() < 4 * middle.mean()
    assert middle.mean(dim=(0, 1, 2)).max() < 4 * middle.mean()
