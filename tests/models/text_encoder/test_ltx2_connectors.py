"""The text connectors of LTX-2 against diffusers'."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoint_files import message
from diffusers.pipelines.ltx2 import LTX2TextConnectors as Peer
from gemma_peers import our_text_model, padded, randomise, text_peer, text_settings
from storage_peak import storage_peak
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.errors import ConfigError
from diffuse.models.text_encoder.ltx2_connectors import (
    LTX2TextConnectors,
    LTX2TextConnectorsConfig,
    TextEmbeddings,
)

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
WIDTH, STATES, TOKENS = 32, 17, 16  # two whole groups of states, and a part of one

COMMON: dict[str, Any] = {
    "caption_channels": WIDTH,
    "text_proj_in_factor": STATES,
    "video_connector_num_layers": 2,
    "audio_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 8,
    "audio_connector_num_learnable_registers": 4,
    "connector_rope_base_seq_len": 64,
    "rope_type": "split",
}
TINY: dict[str, dict[str, Any]] = {
    "2.0": COMMON
    | {
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 16,
        "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 8,
    },
    "2.3": COMMON
    | {
        "video_connector_num_attention_heads": 4,
        "video_connector_attention_head_dim": 16,
        "audio_connector_num_attention_heads": 3,
        "audio_connector_attention_head_dim": 8,
        "video_gated_attn": True,
        "audio_gated_attn": True,
        "per_modality_projections": True,
        "video_hidden_dim": 64,
        "audio_hidden_dim": 24,
        "proj_bias": True,
    },
}
NO_REGISTERS = {"video_connector_num_learnable_registers": None, "audio_connector_num_learnable_registers": None}
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "2.0": (1_431_475_200, {"rope_type": "split"}),
    "2.3": (
        3_172_227_584,
        {
            "rope_type": "split",
            "video_connector_num_layers": 8,
            "audio_connector_num_layers": 8,
            "video_connector_num_attention_heads": 32,
            "audio_connector_num_attention_heads": 32,
            "audio_connector_attention_head_dim": 64,
            "video_gated_attn": True,
            "audio_gated_attn": True,
            "per_modality_projections": True,
            "proj_bias": True,
        },
    ),
}


def peer(version: str, **changes: Any) -> Any:
    return randomise(Peer(**(TINY[version] | changes)), seed=3)


def ours(other: Any) -> LTX2TextConnectors:
    """Our connectors with the peer's settings and weights."""
    config = read_architecture(LTX2TextConnectorsConfig, json.loads(other.to_json_string()), "connectors/config.json")
    with torch.device("meta"):
        module = LTX2TextConnectors(config)
    module.load_state_dict(other.state_dict(), strict=True, assign=True)
    return module.eval()


def hidden(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hidden states `[B, T, W, L]` whose size grows with the layer, as those of a text encoder do."""
    noise = torch.randn(batch, TOKENS, WIDTH, STATES, generator=torch.Generator().manual_seed(7))
    return ((noise + 0.3) * torch.linspace(0.5, 20, STATES)).to(dtype)


def embeddings(model: LTX2TextConnectors, states: Tensor, mask: Tensor, first: int = 0) -> TextEmbeddings:
    projection = model.project(mask)
    for number in range(states.shape[-1]):
        projection.receive(number, states[:, first:, :, number])
    return model(projection.result(), mask)


def left(*lengths: int) -> Tensor:
    return (torch.arange(TOKENS) >= TOKENS - torch.tensor(lengths)[:, None]).long()


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        NO_REGISTERS,
        {"rope_type": "interleaved"},
        {"rope_double_precision": False},
        {"rope_theta": 100.0, "connector_rope_base_seq_len": 16},
        {"proj_bias": "other"},
        {"video_gated_attn": "other", "audio_gated_attn": "other"},
        {"video_connector_num_layers": 0, "audio_connector_num_layers": 3},
    ],
    ids=str,
)
def test_connectors_agree_with_diffusers(version: str, changes: dict[str, Any]) -> None:
    usual = TINY[version]
    changes = {key: not usual.get(key, False) if value == "other" else value for key, value in changes.items()}
    other = peer(version, **changes)
    states, mask = hidden(), left(12, 5)
    video, audio, all_ones = other(states.flatten(2), mask)
    assert all_ones.all()  # no token is masked
    found = embeddings(ours(other), states, mask)
    torch.testing.assert_close(found.video, video, **FLOAT32)
    torch.testing.assert_close(found.audio, audio, **FLOAT32)


@pytest.mark.parametrize("version", TINY)
@pytest.mark.parametrize("lengths", [(1, 1), (16, 16), (16, 1), (8, 7)], ids=str)
def test_any_padding_agrees_with_diffusers(version: str, lengths: tuple[int, int]) -> None:
    other = peer(version)
    model = ours(other)
    states = hidden()
    kept = max(lengths)
    right = (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).long()
    for mask, side in ((left(*lengths), "left"), (right, "right")):
        video, audio, _ = other(states, mask, padding_side=side)
        found = embeddings(model, states, mask)
        torch.testing.assert_close(found.video, video, **FLOAT32)
        torch.testing.assert_close(found.audio, audio, **FLOAT32)
        if side == "left":  # the encoder leaves out what is padding in every row
            shorter = embeddings(model, states, mask, first=TOKENS - kept)
            torch.testing.assert_close(shorter.video, video, **FLOAT32)
            torch.testing.assert_close(shorter.audio, audio, **FLOAT32)


@pytest.mark.parametrize("version", TINY)
def test_what_stands_at_padding_does_not_count(version: str) -> None:
    model = ours(peer(version))
    states, mask = hidden(), left(12, 5)
    other = states.clone()
    other[mask == 0] = 1e4
    for one, two in zip(embeddings(model, states, mask), embeddings(model, other, mask), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("version", TINY)
def test_bfloat16_is_as_near_to_float32_as_diffusers(version: str) -> None:
    other = peer(version)
    states, mask = hidden(dtype=torch.bfloat16), left(12, 5)
    exact = other(states.float(), mask)[:2]
    theirs = other.bfloat16()(states, mask)[:2]
    mine = embeddings(ours(other), states, mask)
    for true, one, two in zip(exact, mine, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - true).abs().mean() < 1.1 * (two - true).abs().mean()


@pytest.mark.parametrize("version", PUBLISHED)
def test_full_size_has_the_published_keys_and_shapes(version: str) -> None:
    parameters, settings = PUBLISHED[version]
    config = read_architecture(LTX2TextConnectorsConfig, settings, "connectors/config.json")
    with torch.device("meta"):
        module, other = LTX2TextConnectors(config), Peer(**settings)
    assert sum(p.numel() for p in module.parameters()) == parameters
    expected = {key: tensor.shape for key, tensor in other.state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected


def test_states_are_not_kept() -> None:
    model = ours(peer("2.0"))
    mask = left(12, 5)
    projection = model.project(mask)
    seen: list[weakref.ref[Tensor]] = []
    for number in range(STATES):
        state = hidden()[..., number].clone()
        seen.append(weakref.ref(state))
        projection.receive(number, state)
        del state
        assert all(one() is None for one in seen)


def test_encoding_takes_less_than_half_the_memory_of_all_states() -> None:
    width, layers, length = 48, 48, 128
    settings = text_settings(hidden_size=width, num_hidden_layers=layers, intermediate_size=64, head_dim=12)
    text = our_text_model(settings, text_peer(**settings).state_dict())
    changes = {"caption_channels": width, "text_proj_in_factor": layers + 1}
    changes |= {"video_connector_attention_head_dim": 24, "audio_connector_attention_head_dim": 12}
    other = peer("2.0", **changes)
    model = ours(other)
    ids, mask = padded([length, length - 20], length)
    kept: list[Tensor] = []

    def streamed() -> TextEmbeddings:
        projection = model.project(mask)
        text(ids, mask, projection.receive)
        return model(projection.result(), mask)

    def stacked() -> Any:
        text(ids, mask, lambda _, state: kept.append(state))
        return other(torch.stack(kept, dim=-1).flatten(2), mask)[:2]

    peak, found = storage_peak(streamed)
    assert peak < ids.numel() * width * (layers + 1) * 4 / 2
    for one, two in zip(found, stacked(), strict=True):
        torch.testing.assert_close(one, two, **FLOAT32)


def says(action: Callable[[], Any]) -> str:
    text = message(action)
    assert "connectors/config.json" in text and "\n" not in text
    return text


def test_another_text_encoder_is_refused() -> None:
    projection = ours(peer("2.0")).project(left(12, 5))
    state = hidden()[..., 0]
    assert "32 channels" in says(lambda: projection.receive(0, state[..., :16]))
    with pytest.raises(ValueError, match="state 1 came where 0"):
        projection.receive(1, state)
    projection.receive(0, state)
    assert f"take {STATES} hidden states, and the text encoder gives 1" in says(projection.result)
    for number in range(1, STATES):
        projection.receive(number, state)
    assert f"number {STATES}" in says(lambda: projection.receive(STATES, state))


def test_a_length_that_registers_do_not_fill_is_refused() -> None:
    model = ours(peer("2.3"))
    with pytest.raises(ConfigError, match="multiple of 8"):
        model.project(torch.ones(1, 12))
    ours(peer("2.3", **NO_REGISTERS)).project(torch.ones(1, 13))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_type": "axial"}, "rope_type=axial"),
        ({"video_connector_num_attention_heads": 3}, "video connector has 3 heads of 16"),
        ({"audio_connector_attention_head_dim": 16}, "audio connector"),
        ({"audio_connector_num_attention_heads": 0}, "0 heads"),
        ({"video_connector_attention_head_dim": 17}, "2 heads of 17"),
        ({"video_connector_num_learnable_registers": 0}, "0 registers"),
        ({"per_modality_projections": True}, "projected to 4096"),
        ({"text_refiner": "yes"}, "text_refiner"),
        ({"caption_channels": "wide"}, "caption_channels"),
    ],
    ids=str,
)
def test_settings_that_make_no_connector_are_refused(changes: dict[str, Any], named: str) -> None:
    settings = TINY["2.0"] | changes
    assert named in says(lambda: read_architecture(LTX2TextConnectorsConfig, settings, "connectors/config.json"))
