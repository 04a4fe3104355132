"""The sound autoencoder of LTX-2 against diffusers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoint_files import message
from diffusers import AutoencoderKLLTX2Audio as Peer
from ltx2_codec_peers import AUDIO, FLOAT32, audio_peer, our_audio
from model_peers import noise

from diffuse.checkpoints.architecture import read_architecture
from diffuse.device.streaming import BlockStream
from diffuse.models.vae.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio, AutoencoderKLLTX2AudioConfig


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mid_block_add_attention": True},
        {"attn_resolutions": (16,), "num_res_blocks": 2},
        {"ch_mult": (1, 1, 2), "in_channels": 1, "output_channels": 1},
        {"latent_channels": 4, "base_channels": 16, "dropout": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 6])
def test_autoencoder_agrees_with_diffusers(changes: dict[str, Any], length: int) -> None:
    peer = audio_peer(**changes)
    model = our_audio(peer)
    latents = noise(2, changes.get("latent_channels", 2), length, 4)
    expected = peer.decode(latents).sample
    assert expected.shape == (2, changes.get("output_channels", 2), 4 * length - 3, 16) and expected.std() > 0.1
    torch.testing.assert_close(model.decode(latents), expected, **FLOAT32)
    for frames in (4 * length - 3, 4 * length):
        mel = noise(2, changes.get("in_channels", 2), frames, 16)
        theirs, mine = peer.encode(mel).latent_dist, model.encode(mel)
        assert mine.mode().shape == latents.shape
        torch.testing.assert_close(mine.mode(), theirs.mode(), **FLOAT32)
        torch.testing.assert_close(mine.logvar, theirs.logvar, **FLOAT32)


def test_bfloat16_is_as_near_to_float32_as_diffusers() -> None:
    peer = audio_peer()
    latents = noise(1, 2, 20, 4).bfloat16()
    exact = peer.decode(latents.float()).sample
    theirs = peer.bfloat16().decode(latents).sample
    found = our_audio(peer).decode(latents)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().mean() < 1.1 * (theirs - exact).abs().mean()


def test_full_size_has_the_published_keys_and_shapes() -> None:
    config = read_architecture(AutoencoderKLLTX2AudioConfig, {}, "audio_vae/config.json")
    assert (config.latent_bins, config.latents_per_second) == (16, 25)
    with torch.device("meta"):
        module, peer = AutoencoderKLLTX2Audio(config), Peer()
        assert module.decode(torch.empty(1, 8, 5, 16)).shape == (1, 2, 17, 64)
    assert sum(p.numel() for p in module.parameters()) == 53_248_146
    expected = {key: tensor.shape for key, tensor in peer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected


def test_statistics_are_those_of_packed_latents() -> None:
    peer = audio_peer()
    model = our_audio(peer)
    latents = noise(2, 2, 5, 4)
    tokens = model.packed(latents)
    assert torch.equal(tokens, peer.decoder.patchifier.patchify(latents))
    assert torch.equal(model.unpacked(tokens), latents)
    torch.testing.assert_close(model.normalized(tokens), (tokens - peer.latents_mean) / peer.latents_std)
    torch.testing.assert_close(model.denormalized(model.normalized(tokens)), tokens)


def test_streamed_blocks_decode_the_same_sound() -> None:
    model, streamed = (our_audio(audio_peer()) for _ in range(2))
    stream = BlockStream(streamed, streamed.streamed_blocks, torch.device("cpu"), 0)
    stream.arrive()
    latents = noise(1, 2, 5, 4)
    assert torch.equal(streamed.decode(latents), model.decode(latents))


def test_other_bins_are_refused() -> None:
    model = our_audio(audio_peer())
    with pytest.raises(ValueError, match="latents of 5 bins came where 4"):
        model.decode(noise(1, 2, 3, 5))
    with pytest.raises(ValueError, match="a spectrogram of 20 bins came where 16"):
        model.encode(noise(1, 2, 3, 20))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm_type": "group"}, "norm_type='group'"),
        ({"causality_axis": "width"}, "causality_axis='width'"),
        ({"causality_axis": None}, "causality_axis=None"),
        ({"is_causal": False}, "is_causal=False"),
        ({"double_z": False}, "double_z=False"),
        ({"ch_mult": (1, 2, 4, 8)}, "ch_mult has 4 levels"),
        ({"ch_mult": (1, 0, 4)}, "make no autoencoder"),
        ({"mel_bins": 18}, "mel_bins=18"),
        ({"base_channels": 16}, "2 channels of 4 bins"),
        ({"mel_bins": None}, "mel_bins"),
        ({"causal_attention": True}, "causal_attention"),
    ],
    ids=str,
)
def test_settings_that_make_no_autoencoder_are_refused(changes: dict[str, Any], named: str) -> None:
    text = message(lambda: read_architecture(AutoencoderKLLTX2AudioConfig, AUDIO | changes, "audio_vae/config.json"))
    assert named in text and "audio_vae/config.json" in text and "\n" not in text
