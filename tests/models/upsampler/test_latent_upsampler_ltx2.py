"""The upsampler of LTX-2's latents against diffusers'."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from checkpoint_files import message
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel as Peer
from gemma_peers import randomise

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.upsampler.latent_upsampler_ltx2 import LTX2LatentUpsamplerConfig, LTX2LatentUpsamplerModel

FILE = "latent_upsampler/config.json"
TINY = {"in_channels": 6, "mid_channels": 32, "num_blocks_per_stage": 1}


def ours(peer: Any) -> LTX2LatentUpsamplerModel:
    config = read_architecture(LTX2LatentUpsamplerConfig, json.loads(peer.to_json_string()), FILE)
    with torch.device("meta"):
        module = LTX2LatentUpsamplerModel(config)
    module.load_state_dict(peer.state_dict(), strict=True, assign=True)
    return module.eval()


@pytest.mark.parametrize(
    ("changes", "frames", "scale"),
    [
        ({}, 3, 2),
        ({"use_rational_resampler": False}, 3, 2),
        ({"rational_spatial_scale": 1.5}, 3, 1.5),
        ({"rational_spatial_scale": 0.75, "num_blocks_per_stage": 2}, 3, 0.75),
        ({"rational_spatial_scale": 4.0, "num_blocks_per_stage": 0}, 3, 4),
        ({"spatial_upsample": False, "temporal_upsample": True}, 5, 1),
        ({"temporal_upsample": True, "rational_spatial_scale": 1.5}, 5, 2),
        ({"dims": 2}, 3, 2),
        ({"dims": 2, "rational_spatial_scale": 1.5}, 3, 1.5),
        ({"dims": 2, "use_rational_resampler": False, "mid_channels": 64}, 3, 2),
    ],
    ids=str,
)
def test_latents_agree_with_diffusers(changes: dict[str, Any], frames: int, scale: float) -> None:
    peer = randomise(Peer(**(TINY | changes)))
    for buffer in peer.buffers():  # it is stored, so it has to be read
        buffer.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(9))
    model = ours(peer)
    latents = torch.randn(2, 6, 3, 4, 8, generator=torch.Generator().manual_seed(8))
    expected = peer(latents)
    torch.testing.assert_close(model(latents), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (2, 6, frames, 4 * scale, 8 * scale)
    assert model.config.spatial_scale == scale


@pytest.mark.parametrize("changes", [{}, {"use_rational_resampler": False}], ids=str)
def test_full_size_has_the_published_keys_and_shapes(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        module, peer = LTX2LatentUpsamplerModel(LTX2LatentUpsamplerConfig(**changes)), Peer(**changes)
    state = {key: tensor.shape for key, tensor in module.state_dict().items()}
    assert state == {key: tensor.shape for key, tensor in peer.state_dict().items()}
    assert sum(p.numel() for p in module.parameters()) == 497_867_904


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rational_spatial_scale": 3.0}, "rational_spatial_scale=3.0 is not implemented, only 0.75, 1.5, 2.0, 4.0"),
        ({"mid_channels": 48}, "mid_channels=48"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"num_blocks_per_stage": -1}, "num_blocks_per_stage=-1"),
        ({"dims": 1}, "dims=1"),
        ({"dims": 2, "temporal_upsample": True}, "temporal_upsample=True with dims=2"),
        ({"spatial_upsample": False}, "spatial_upsample=False"),
        ({"_class_name": "LTXLatentUpsamplerModel"}, "_class_name='LTXLatentUpsamplerModel'"),
        ({"adain": True}, "adain=True"),
        ({"mid_channels": "many"}, "mid_channels='many'"),
    ],
    ids=str,
)
def test_settings_that_make_no_upsampler_are_refused(changes: dict[str, Any], named: str) -> None:
    text = message(lambda: read_architecture(LTX2LatentUpsamplerConfig, changes, FILE))
    assert FILE in text and named in text and "\n" not in text
