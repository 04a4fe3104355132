"""The U-Net against diffusers', with the same weights and random inputs."""

from __future__ import annotations

from dataclasses import replace

import oracle
import pytest
import torch
from diffusers import UNet2DConditionModel
from model_peers import FLOAT32, TWO_LEVELS, noise, ours
from oracle import Variant

UNETS = {
    "sd21": Variant(),
    "sd15": Variant(linear_projection=False, heads=8, upcast_attention=False),
    "two levels": TWO_LEVELS,
    "three levels, deep": Variant(
        channels=(16, 32, 32), heads=(2, 4, 8), cross=(False, True, True), transformer_layers=(1, 2, 3)
    ),
    "tuples": Variant(
        channels=(16, 32, 64), heads=(4, 2, 8), cross=(True, False, True), layers_per_block=(1, 3, 2), seed=3
    ),
    "deep, convolutions": replace(TWO_LEVELS, linear_projection=False, transformer_layers=2, layers_per_block=2),
}


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (7, 24)])
def test_unet_agrees_with_diffusers(name: str, size: tuple[int, int]) -> None:
    peer = oracle.unet(UNETS[name])
    x, text = noise(2, 4, *size), noise(2, 77, 32, seed=1)
    expected = peer(x, torch.tensor(481), text).sample
    assert expected.std() > 0.3
    torch.testing.assert_close(ours("unet", peer)(x, torch.tensor(481), text), expected, **FLOAT32)


def test_unet_takes_a_timestep_for_each_picture_and_any_length_of_text() -> None:
    peer = oracle.unet(TWO_LEVELS)
    model = ours("unet", peer)
    x, text, timesteps = noise(3, 4, 8, 8), noise(3, 5, 32, seed=1), torch.tensor([1, 500, 999])
    torch.testing.assert_close(model(x, timesteps, text), peer(x, timesteps, text).sample, **FLOAT32)
    torch.testing.assert_close(model(x, 7.0, text), peer(x, 7.0, text).sample, **FLOAT32)


def test_unet_shares_a_text_among_neighbours() -> None:
    peer = oracle.unet(TWO_LEVELS)
    x, text, timesteps = noise(6, 4, 8, 8), noise(2, 77, 32, seed=1), torch.tensor([1, 500, 999, 2, 3, 4])
    expected = peer(x, timesteps, text.repeat_interleave(3, 0)).sample
    torch.testing.assert_close(ours("unet", peer)(x, timesteps, text), expected, **FLOAT32)


@pytest.mark.parametrize("name", UNETS)
def test_unet_copies_the_pictures_for_each_text(name: str) -> None:
    """What is computed before the text has a say is that of both."""
    peer = oracle.unet(UNETS[name])
    x, text, timesteps = noise(3, 4, 9, 8), noise(2, 77, 32, seed=1), torch.tensor([1, 500, 999])
    expected = peer(torch.cat([x, x]), timesteps.repeat(2), text.repeat_interleave(3, 0)).sample
    torch.testing.assert_close(ours("unet", peer)(x, timesteps, text, copies=2), expected, **FLOAT32)


def test_unet_reads_every_input() -> None:
    model = ours("unet", oracle.unet(TWO_LEVELS))
    x, text = noise(1, 4, 8, 8), noise(1, 77, 32, seed=1)
    base = model(x, torch.tensor(500), text)
    assert (model(x, torch.tensor(400), text) - base).abs().max() > 0.01
    assert (model(x, torch.tensor(500), text.flip(2)) - base).abs().max() > 0.01
    assert (model(x.flip(2), torch.tensor(500), text) - base).abs().max() > 0.01


SMALLER = {
    "no middle, as tiny-sd": {"mid_block_type": None},
    "no attention in the middle": {"mid_block_type": "UNetMidBlock2D"},
    "as SSD-1B": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 3]],
        "reverse_transformer_layers_per_block": [[3, 2, 1], 2],
        "layers_per_block": [1, 2],
    },
    "the way up alone": {"reverse_transformer_layers_per_block": [3, 1]},
    "each block its own": {
        "layers_per_block": 2,
        "transformer_layers_per_block": [[1, 2], [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 2, 1], [2, 1, 1]],
    },
    "more than there are blocks": {
        "transformer_layers_per_block": [[1, 2, 3], [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 2, 1], [2, 1, 1]],
    },
    "no layers on one level": {"transformer_layers_per_block": [0, 1]},
    "no layers in the middle": {"transformer_layers_per_block": [1, 0]},
    "swish and dropout": {"act_fn": "swish", "dropout": 0.5},
}


@pytest.mark.parametrize("name", SMALLER)
def test_unets_with_parts_left_out_agree_with_diffusers(name: str) -> None:
    settings = {key: value for key, value in oracle.unet(TWO_LEVELS).config.items() if not key.startswith("_")}
    peer = UNet2DConditionModel(**{**settings, **SMALLER[name]}).eval()
    oracle.randomise(peer, 3)
    x, text = noise(2, 4, 8, 9), noise(2, 77, 32, seed=1)
    expected = peer(x, torch.tensor(481), text).sample
    assert expected.std() > 0.3
    torch.testing.assert_close(ours("unet", peer)(x, torch.tensor(481), text), expected, rtol=1e-4, atol=1e-4)
