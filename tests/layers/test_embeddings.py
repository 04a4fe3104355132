"""The embedding of timesteps, within diffusers' U-Net and ours."""

from __future__ import annotations

import oracle
import pytest
import torch
from diffusers import UNet2DConditionModel as PeerUNet
from model_peers import FLOAT32, noise, ours


@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 1)])
def test_timestep_embedding_options(flip: bool, shift: int) -> None:
    peer = PeerUNet(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
        flip_sin_to_cos=flip,
        freq_shift=shift,
        norm_eps=1e-3,
    ).eval()
    oracle.randomise(peer, 0)
    x, text = noise(1, 4, 8, 8), noise(1, 77, 32, seed=1)
    torch.testing.assert_close(ours("unet", peer)(x, 77, text), peer(x, 77, text).sample, **FLOAT32)
