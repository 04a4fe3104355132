"""The vocoders of LTX-2 against diffusers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoint_files import message
from diffusers.pipelines.ltx2 import LTX2Vocoder as Peer
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE as PeerWithBWE
from ltx2_codec_peers import FLOAT32, VOCODER, our_vocoder, vocoder_peer
from model_peers import noise

from diffuse.checkpoints.architecture import read_architecture
from diffuse.device.streaming import BlockStream
from diffuse.models.vocoder.ltx2_vocoder import (
    LTX2Vocoder,
    LTX2VocoderConfig,
    LTX2VocoderWithBWE,
    LTX2VocoderWithBWEConfig,
)

SNAKE = {"act_fn": "snakebeta", "antialias": True, "final_act_fn": None, "final_bias": False}


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        ("2.0", {}),
        ("2.0", {"leaky_relu_negative_slope": 0.3, "final_act_fn": "clamp", "final_bias": False}),
        ("2.0", SNAKE),
        ("2.0", SNAKE | {"act_fn": "snake", "antialias_ratio": 3, "antialias_kernel_size": 13}),
        ("2.0", SNAKE | {"antialias": False, "upsample_kernel_sizes": [9, 5, 3]}),
        ("2.0", SNAKE | {"antialias_kernel_size": 7, "final_act_fn": "tanh"}),
        ("2.3", {}),
        ("2.3", {"act_fn": "leaky_relu", "antialias": False, "final_act_fn": "tanh", "bwe_final_bias": True}),
        ("2.3", {"bwe_act_fn": "snake"}),
        ("2.3", {"output_sampling_rate": 32000, "bwe_upsample_factors": [4, 5, 2, 4]}),
    ],
    ids=str,
)
def test_vocoder_agrees_with_diffusers(version: str, changes: dict[str, Any]) -> None:
    peer = vocoder_peer(version, **changes)
    model = our_vocoder(peer)
    for length in (1, 9):
        mel = noise(2, 2, length, 16)
        expected, found = peer(mel), model(mel)
        assert expected.std() > 0.02
        # 1e-5 where convolutions use AVX-512; with AVX2 one sample in ten thousand is 1.3e-5 away.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    if len(changes) != 5:  # an odd difference of kernel and factor leaves a sample more or less
        assert found.shape == (2, 2, 9 * model.config.samples_per_frame)


@pytest.mark.parametrize("version", VOCODER)
def test_filters_begin_as_diffusers_have_them(version: str) -> None:
    if version == "2.0":
        settings = VOCODER[version] | SNAKE | {"antialias_ratio": 3, "antialias_kernel_size": 13}
        model: Any = LTX2Vocoder(read_architecture(LTX2VocoderConfig, settings, "vocoder/config.json"))
        peer: Any = Peer(**settings)
    else:
        model = LTX2VocoderWithBWE(read_architecture(LTX2VocoderWithBWEConfig, VOCODER[version], "vocoder/config.json"))
        peer = PeerWithBWE(**VOCODER[version])
    found = dict(model.named_buffers())
    names = [name for name in peer.state_dict() if name.endswith("filter")]
    assert len(names) > 20
    for name in names:
        torch.testing.assert_close(found[name], peer.state_dict()[name])


def test_a_vocoder_whose_frames_are_no_whole_hops_is_extended() -> None:
    changes = {"upsample_factors": [3, 2, 2, 2, 4], "upsample_kernel_sizes": [3, 4, 4, 4, 4]}  # 96 samples a frame
    peer = vocoder_peer("2.3", **changes)
    peer.hop_length = peer.config.hop_length  # which diffusers looks for in the wrong place
    mel = noise(1, 2, 9, 16)
    found = our_vocoder(peer)(mel)
    assert found.shape == (1, 2, 3 * 96 * 9)
    torch.testing.assert_close(found, peer(mel), **FLOAT32)


def test_bfloat16_is_as_near_to_float32_as_diffusers() -> None:
    peer = vocoder_peer("2.0")
    mel = noise(1, 2, 20, 16).bfloat16()
    exact = peer(mel.float())
    theirs = peer.bfloat16()(mel)
    found = our_vocoder(peer)(mel)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().mean() < 1.1 * (theirs - exact).abs().mean()


def test_full_size_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        pairs: list[tuple[Any, Any, int, int]] = [
            (LTX2Vocoder(LTX2VocoderConfig()), Peer(), 55_592_802, 240),
            (LTX2VocoderWithBWE(LTX2VocoderWithBWEConfig()), PeerWithBWE(), 128_537_448, 480),
        ]
        for module, peer, parameters, samples in pairs:
            assert sum(p.numel() for p in module.parameters()) == parameters
            expected = {key: tensor.shape for key, tensor in peer.state_dict().items()}
            assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected
            assert module.config.samples_per_frame == samples
    assert len(pairs[1][0].state_dict()) == 1227


def test_a_forecast_without_weights_has_the_samples() -> None:
    model = our_vocoder(vocoder_peer("2.3")).to("meta")
    assert model(torch.empty(1, 2, 5, 16, device="meta")).shape == (1, 2, 5 * 480)


@pytest.mark.parametrize("version", VOCODER)
def test_streamed_blocks_make_the_same_sound(version: str) -> None:
    model, streamed = (our_vocoder(vocoder_peer(version)) for _ in range(2))
    stream = BlockStream(streamed, streamed.streamed_blocks, torch.device("cpu"), 0)
    stream.arrive()
    mel = noise(1, 2, 5, 16)
    assert torch.equal(streamed(mel), model(mel))


@pytest.mark.parametrize("version", VOCODER)
def test_gradients_reach_the_spectrogram_and_every_weight(version: str) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        model = our_vocoder(vocoder_peer(version)).requires_grad_(True)
        mel = noise(1, 2, 3, 16).requires_grad_()
        model(mel).square().mean().backward()
        assert mel.grad is not None and mel.grad.abs().sum() > 0
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("version", "changes", "named"),
    [
        ("2.0", {"act_fn": "gelu"}, "act_fn=gelu"),
        ("2.0", {"final_act_fn": "sigmoid"}, "final_act_fn=sigmoid"),
        ("2.0", {"antialias": True}, "antialias=True"),
        ("2.0", {"upsample_factors": [6, 5]}, "upsample_kernel_sizes and upsample_factors have 3 and 2"),
        ("2.0", {"resnet_dilations": [[1]]}, "resnet_kernel_sizes and resnet_dilations have 2 and 1"),
        ("2.0", {"upsample_factors": [6, 5, 9]}, "shorter than its factor"),
        ("2.0", {"resnet_kernel_sizes": [3, 4]}, "even kernel"),
        ("2.0", {"resnet_dilations": [[1], []]}, "no dilation"),
        ("2.0", {"hidden_channels": 4}, "halved 3 times"),
        ("2.0", {"in_channels": "mel"}, "in_channels"),
        ("2.0", {"_class_name": "LTX2VocoderWithBWE"}, "_class_name='LTX2VocoderWithBWE'"),
        ("2.3", {"output_sampling_rate": 44100}, "output_sampling_rate=44100 is no multiple"),
        ("2.3", {"bwe_upsample_factors": [6, 5, 2, 2]}, "makes 120 samples of the 80"),
        ("2.3", {"window_length": 480}, "window_length=480"),
        ("2.3", {"num_mel_channels": 20}, "other channels"),
        ("2.3", {"bwe_act_fn": "gelu"}, "begin with bwe_, act_fn=gelu"),
        ("2.3", {"noise_shaping": True}, "noise_shaping"),
    ],
    ids=str,
)
def test_settings_that_make_no_vocoder_are_refused(version: str, changes: dict[str, Any], named: str) -> None:
    config: Any = LTX2VocoderConfig if version == "2.0" else LTX2VocoderWithBWEConfig
    text = message(lambda: read_architecture(config, VOCODER[version] | changes, "vocoder/config.json"))
    assert named in text and "vocoder/config.json" in text and "\n" not in text
