"""The video autoencoder of LTX-2 against diffusers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoint_files import message
from diffusers import AutoencoderKLLTX2Video as Peer
from ltx2_codec_peers import FLOAT32, LATENTS, VIDEO, film, our_video, video_peer
from model_peers import noise

from diffuse.checkpoints.architecture import read_architecture
from diffuse.device.streaming import BlockStream
from diffuse.models.vae.autoencoder_kl_ltx2_video import AutoencoderKLLTX2Video
from diffuse.models.vae.ltx2_video_config import AutoencoderKLLTX2VideoConfig

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "2.0": (1_222_479_601, {"decoder_causal": False}),
    "2.3": (
        726_105_969,
        {
            "block_out_channels": (256, 512, 1024, 1024),
            "layers_per_block": (4, 6, 4, 2, 2),
            "decoder_block_out_channels": (256, 512, 512, 1024),
            "decoder_layers_per_block": (4, 6, 4, 2, 2),
            "decoder_spatio_temporal_scaling": (True,) * 4,
            "decoder_inject_noise": (False,) * 5,
            "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            "upsample_residual": (False,) * 4,
            "upsample_factor": (2, 2, 1, 2),
            "decoder_spatial_padding_mode": "zeros",
            "decoder_causal": False,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
    ),
}


@pytest.mark.parametrize("version", VIDEO)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decoder_causal": True, "encoder_causal": False},
        {"decoder_spatial_padding_mode": "other", "encoder_spatial_padding_mode": "reflect"},
        {"scaling_factor": 2.0, "timestep_conditioning": True},
        {"upsample_residual": "other"},
        {"downsample_type": ("conv", "conv", "spatial", "temporal"), "block_out_channels": (8, 8, 16, 32)},
    ],
    ids=str,
)
def test_autoencoder_agrees_with_diffusers(version: str, changes: dict[str, Any]) -> None:
    usual = VIDEO[version]
    if changes.get("decoder_spatial_padding_mode"):
        other = "zeros" if usual["decoder_spatial_padding_mode"] == "reflect" else "reflect"
        changes = changes | {"decoder_spatial_padding_mode": other}
    if changes.get("upsample_residual"):
        changes = {"upsample_residual": tuple(not value for value in usual["upsample_residual"])}
    peer = video_peer(version, **changes)
    model = our_video(peer)
    timestep = torch.tensor([0.05, 0.4]) if changes.get("timestep_conditioning") else None
    latents = noise(2, LATENTS, 2, 2, 2)
    expected = peer.decode(latents, timestep, return_dict=False)[0]
    assert expected.shape == (2, 3, 9, 64, 64) and expected.std() > 0.1
    torch.testing.assert_close(model.decode(latents, timestep), expected, **FLOAT32)
    pixels = film(2, 9, 64 if "encoder_spatial_padding_mode" in changes else 32, 64)
    theirs, mine = peer.encode(pixels).latent_dist, model.encode(pixels)
    torch.testing.assert_close(mine.mode(), theirs.mode(), **FLOAT32)
    torch.testing.assert_close(mine.logvar, theirs.logvar, **FLOAT32)


@pytest.mark.parametrize("version", VIDEO)
def test_one_picture_agrees_with_diffusers(version: str) -> None:
    peer = video_peer(version)
    model = our_video(peer)
    latents, pixels = noise(1, LATENTS, 1, 3, 2), film(1, 1, 64, 32)
    torch.testing.assert_close(model.decode(latents), peer.decode(latents).sample, **FLOAT32)
    torch.testing.assert_close(model.encode(pixels).mode(), peer.encode(pixels).latent_dist.mode(), **FLOAT32)


@pytest.mark.parametrize("version", VIDEO)
def test_injected_noise_comes_from_each_films_generator(version: str) -> None:
    levels = len(VIDEO[version]["upsample_type"])
    peer = video_peer(version, decoder_inject_noise=(True,) * (levels + 1))
    model = our_video(peer)
    latents = noise(2, LATENTS, 2, 2, 2)
    seeded = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    found = model.decode(latents, generators=seeded)
    for i, seed in enumerate((3, 4)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # diffusers' decoder draws from the global generator
            expected = peer.decode(latents[i : i + 1]).sample
        torch.testing.assert_close(found[i : i + 1], expected, **FLOAT32)
    with pytest.raises(ValueError, match="needs generators"):
        model.decode(latents)


def test_a_latent_drawn_from_the_encoders_distribution_is_diffusers_own() -> None:
    peer = video_peer("2.3")
    pixels = film(1, 9, 32, 32)
    expected = peer.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(7))
    found = our_video(peer).encode(pixels).sample([torch.Generator().manual_seed(7)])
    torch.testing.assert_close(found, expected, **FLOAT32)


def test_levels_that_keep_the_resolution_or_change_the_width() -> None:
    changes = {
        "decoder_block_out_channels": (16, 32, 32, 32),
        "decoder_spatio_temporal_scaling": (True, False, True, True),
        "upsample_type": ("spatiotemporal", "spatiotemporal", "spatial", "spatial"),
        "upsample_factor": (1, 1, 2, 1),
        "spatio_temporal_scaling": (True, True, True, False),
        "downsample_type": ("spatiotemporal", "spatiotemporal", "spatial", "spatial"),
        "patch_size": 2,
        "resnet_norm_eps": 1e-2,
        "temporal_compression_ratio": 4,
        "spatial_compression_ratio": 16,
    }
    peer = video_peer("2.3", **changes)
    model = our_video(peer)
    latents, pixels = noise(1, LATENTS, 2, 2, 2), film(1, 5, 32, 32)
    torch.testing.assert_close(model.decode(latents), peer.decode(latents).sample, **FLOAT32)
    torch.testing.assert_close(model.encode(pixels).mode(), peer.encode(pixels).latent_dist.mode(), **FLOAT32)


@pytest.mark.parametrize("version", VIDEO)
def test_bfloat16_is_as_near_to_float32_as_diffusers(version: str) -> None:
    peer = video_peer(version)
    latents, pixels = noise(1, LATENTS, 2, 2, 2).bfloat16(), film(1, 9, 64, 64).bfloat16()
    exact = peer.decode(latents.float()).sample, peer.encode(pixels.float()).latent_dist.mode()
    peer.bfloat16()
    model = our_video(peer)
    theirs = peer.decode(latents).sample, peer.encode(pixels).latent_dist.mode()
    for true, one, two in zip(exact, (model.decode(latents), model.encode(pixels).mode()), theirs, strict=True):
        assert one.dtype == torch.bfloat16
        # The encoder's few latents leave much to chance.
        assert (one - true).abs().mean() < 1.3 * (two - true).abs().mean()


@pytest.mark.parametrize("version", PUBLISHED)
def test_full_size_has_the_published_keys_and_shapes(version: str) -> None:
    parameters, settings = PUBLISHED[version]
    config = read_architecture(AutoencoderKLLTX2VideoConfig, settings, "vae/config.json")
    assert (config.factor, config.frames) == (32, 8)
    with torch.device("meta"):
        module, peer = AutoencoderKLLTX2Video(config), Peer(**settings)
        assert module.decode(torch.empty(1, 128, 2, 2, 3)).shape == (1, 3, 9, 64, 96)
    assert sum(p.numel() for p in module.parameters()) == parameters
    expected = {key: tensor.shape for key, tensor in peer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected


def test_films_decoded_in_a_batch_are_the_films_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = our_video(video_peer("2.3"))
    latents = noise(3, LATENTS, 2, 1, 1)
    whole = model.decode(latents)
    torch.testing.assert_close(whole[1:2], model.decode(latents[1:2]), rtol=0, atol=1e-5)
    monkeypatch.setattr("diffuse.models.vae.autoencoder_kl_ltx2_video._BATCH_LATENTS", 4)  # two films at once
    torch.testing.assert_close(model.decode(latents), whole, rtol=0, atol=1e-5)


def test_statistics_are_taken_off_and_put_back() -> None:
    peer = video_peer("2.0", scaling_factor=2.0)
    model = our_video(peer)
    latents = noise(2, LATENTS, 2, 1, 1)
    mean, std = (t.view(1, -1, 1, 1, 1) for t in (peer.latents_mean, peer.latents_std))
    torch.testing.assert_close(model.normalized(latents), (latents - mean) * 2.0 / std)
    torch.testing.assert_close(model.denormalized(model.normalized(latents)), latents)


@pytest.mark.parametrize("resident", [0, 2])
def test_streamed_blocks_decode_the_same_film(resident: int) -> None:
    model, streamed = (our_video(video_peer("2.3")) for _ in range(2))
    stream = BlockStream(streamed, streamed.streamed_blocks, torch.device("cpu"), resident)
    stream.arrive()
    latents = noise(1, LATENTS, 2, 1, 2)
    assert torch.equal(streamed.decode(latents), model.decode(latents))
    stream.leave()


def test_gradients_reach_the_pixels_and_every_weight() -> None:
    with torch.inference_mode(False), torch.enable_grad():
        model = our_video(video_peer("2.3", timestep_conditioning=True)).requires_grad_(True)
        pixels = film(1, 9, 32, 32).requires_grad_()
        model.decode(model.encode(pixels).mode(), torch.tensor([0.1])).square().mean().backward()
        assert pixels.grad is not None and pixels.grad.abs().sum() > 0
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_what_is_no_whole_latent_is_refused() -> None:
    model = our_video(video_peer("2.0", timestep_conditioning=True))
    with pytest.raises(ValueError, match="multiple of 8 frames and one more, and sides that 32 divides"):
        model.encode(film(1, 8, 64, 64))
    with pytest.raises(ValueError, match="sides that 32 divides"):
        model.encode(film(1, 9, 64, 65))
    with pytest.raises(ValueError, match="needs timestep"):
        model.decode(noise(1, LATENTS, 2, 2, 2))
    with pytest.raises(ValueError, match="at least 64 pixels a side, not 96 x 32"):  # a reflection needs two latents
        model.decode(noise(1, LATENTS, 2, 1, 3), torch.tensor([0.1]))
    with pytest.raises(ValueError, match="at least 64 pixels a side, not 32 x 64"):
        our_video(video_peer("2.3", encoder_spatial_padding_mode="reflect")).encode(film(1, 1, 64, 32))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size_t": 2}, "patch_size_t=2"),
        ({"down_block_types": ("LTXVideoDownBlock3D",) * 4}, "down_block_types=LTXVideoDownBlock3D"),
        ({"downsample_type": ("spatial", "temporal", "spatiotemporal", "mean")}, "downsample_type=mean"),
        ({"upsample_type": ("nearest",) * 3}, "upsample_type=nearest"),
        ({"decoder_spatial_padding_mode": "circular"}, "decoder_spatial_padding_mode=circular"),
        ({"layers_per_block": (1, 1)}, "layers_per_block has 2 entries, where the blocks are 5"),
        ({"upsample_residual": (True,) * 4}, "upsample_residual has 4 entries"),
        ({"decoder_inject_noise": (True,) * 3}, "decoder_inject_noise has 3 entries"),
        ({"upsample_factor": (0, 2, 2)}, "less than one"),
        ({"upsample_factor": (3, 2, 2)}, "by a factor of 3"),
        ({"block_out_channels": (16, 16, 30, 64)}, "30"),
        ({"upsample_type": ("spatial", "spatiotemporal", "spatiotemporal")}, "differently"),
        ({"spatial_compression_ratio": 16}, "spatial_compression_ratio=16, where the blocks make 32"),
        ({"temporal_compression_ratio": 4}, "temporal_compression_ratio=4"),
        ({"diffusion_decoder": True}, "diffusion_decoder"),
        ({"latent_channels": "many"}, "latent_channels"),
    ],
    ids=str,
)
def test_settings_that_make_no_autoencoder_are_refused(changes: dict[str, Any], named: str) -> None:
    settings = VIDEO["2.0"] | changes
    text = message(lambda: read_architecture(AutoencoderKLLTX2VideoConfig, settings, "vae/config.json"))
    assert named in text and "vae/config.json" in text and "\n" not in text
