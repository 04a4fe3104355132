"""Gemma 3's text model against transformers'."""

from __future__ import annotations

import json
import weakref
from typing import Any

import pytest
import torch
from checkpoint_files import message
from gemma_peers import LAYERS, WIDTH, our_text_model, padded, text_peer, text_settings, whole_peer
from torch import Tensor
from transformers import Gemma3TextConfig as PeerConfig
from transformers import Gemma3TextModel as PeerText

from diffuse.checkpoints.architecture import read_architecture
from diffuse.device.streaming import BlockStream
from diffuse.models.text_encoder import gemma3

# A state that is not normalised reaches 10; its rounding is measured against that.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
# window 8: shorter, as long, longer than the window, with and without padding
TEXTS = {
    "padded": ([11, 3], 24),
    "one padded text": ([3], 16),
    "exact": ([6], 6),
    "as long as the window": ([8, 8], 8),
    "longer than the window": ([40, 40], 40),
    "longer than the window, padded": ([50, 21, 1], 64),
}
GEMMA_3_12B = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "model_type": "gemma3_text",
    "num_attention_heads": 16,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def states_of(model: gemma3.Gemma3TextModel, ids: Tensor, mask: Tensor) -> list[Tensor]:
    states: list[Tensor] = []

    def receive(number: int, state: Tensor) -> None:
        assert number == len(states)
        states.append(state)

    last = model(ids, mask, receive)
    assert len(states) == model.states
    assert last is states[-1]
    return states


def assert_agree(peer: Any, model: gemma3.Gemma3TextModel, lengths: list[int], size: int) -> None:
    ids, mask = padded(lengths, size)
    expected = peer(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = states_of(model, ids, mask)
    assert len(found) == len(expected)
    kept = max(lengths)  # the rest is padding in every row
    valid = mask[:, -kept:].bool()
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (len(lengths), kept, WIDTH)
        assert torch.isfinite(mine).all()
        # Relative to the largest: small ones are differences of large ones, which processors round in their own ways.
        wanted = theirs[:, -kept:][valid]
        torch.testing.assert_close(mine[valid], wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@pytest.fixture(scope="module")
def whole() -> Any:
    return whole_peer()


@pytest.mark.parametrize("name", TEXTS)
def test_all_hidden_states_agree_with_transformers(whole: Any, name: str) -> None:
    model = our_text_model(json.loads(whole.config.to_json_string()), whole.state_dict())
    assert_agree(whole, model, *TEXTS[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"sliding_window": 3},
        {"layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"]},
        {"rms_norm_eps": 1e-2},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}, "sliding_attention": None}},
    ],
    ids=str,
)
def test_every_setting_is_obeyed(changes: dict[str, Any]) -> None:
    peer = text_peer(**changes)
    settings = text_settings(**changes) | {"model_type": "gemma3_text"}
    model = our_text_model(settings, peer.state_dict())
    assert_agree(peer, model, [30, 12], 32)


OLD = {
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window_pattern": 6,
    "cache_implementation": "hybrid",
}


@pytest.mark.parametrize("within", ["text_config", None])
@pytest.mark.parametrize("form", ["written by transformers", "older", "older, type"])
def test_settings_are_read_in_every_published_form(whole: Any, within: str | None, form: str) -> None:
    settings = json.loads(whole.config.text_config.to_json_string())
    if form != "written by transformers":
        settings = {k: v for k, v in settings.items() if k not in ("rope_parameters", "layer_types")} | OLD
    if form == "older, type":
        settings["rope_scaling"] = {"type": "linear", "factor": 8.0}
    published = {within: settings, "model_type": "gemma3", "mm_tokens_per_image": 4} if within else settings
    config = read_architecture(gemma3.Gemma3TextConfig, published, "config.json")
    assert config.attention_types == ("sliding_attention",) * 5 + ("full_attention", "sliding_attention")
    assert config.rotary("full_attention") == (1e6, 8.0)
    assert config.rotary("sliding_attention") == (1e4, 1.0)
    assert (config.head_dim, config.query_pre_attn_scalar, config.sliding_window) == (16, 20, 8)


@pytest.mark.parametrize(
    ("text", "tower"),
    [
        ("language_model.model.", ""),
        ("model.language_model.", "model."),
        ("model.", None),
        ("", None),
    ],
)
def test_weights_are_found_under_every_published_name(whole: Any, text: str, tower: str | None) -> None:
    inner = whole.model
    weights = {text + key: tensor for key, tensor in inner.language_model.state_dict().items()}
    unused = ["lm_head.weight", text + "rotary_emb.inv_freq"]
    if tower is not None:
        unused += [f"{tower}vision_tower.vision_model.{key}" for key in inner.vision_tower.state_dict()]
        unused += [f"{tower}multi_modal_projector.{key}" for key in inner.multi_modal_projector.state_dict()]
        unused += ["language_model.lm_head.weight"]
    assert [key for key in unused if gemma3.rename(key) is not None] == []
    assert {gemma3.rename(key) for key in weights} == set(inner.language_model.state_dict())
    assert gemma3.rename(text + "layers.0.vision_tower.weight") == "layers.0.vision_tower.weight"  # and is refused


def test_states_are_handed_over_and_not_kept() -> None:
    peer = text_peer()
    model = our_text_model(text_settings(), peer.state_dict())
    alive: list[int] = []
    seen: list[weakref.ref[Tensor]] = []

    def receive(number: int, state: Tensor) -> None:
        alive.append(sum(one() is not None for one in seen))
        seen.append(weakref.ref(state))

    model(*padded([12], 16), receive)
    assert len(seen) == LAYERS + 1
    assert max(alive) <= 1  # the one before it


@pytest.mark.parametrize("resident", [0, 3])
def test_layers_can_stream(resident: int) -> None:
    weights = text_peer().state_dict()
    model, streamed = our_text_model(text_settings(), weights), our_text_model(text_settings(), weights)
    stream = BlockStream(streamed, streamed.streamed_blocks, torch.device("cpu"), resident)
    stream.arrive()
    ids, mask = padded([20, 9], 24)
    present: list[int] = []
    streamed(ids, mask, lambda number, state: present.append(stream.present_blocks))
    assert max(present) < LAYERS  # which is to say that layers come and go
    for one, two in zip(states_of(streamed, ids, mask), states_of(model, ids, mask), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_padding_and_company_change_nothing() -> None:
    model = our_text_model(text_settings(), text_peer().state_dict())
    ids, mask = padded([20, 9], 24)
    together = states_of(model, ids, mask)
    alone = states_of(model, ids[1:], mask[1:])
    for one, two in zip(alone, together, strict=True):
        assert one.shape[1] == 9
        torch.testing.assert_close(one[0], two[1, -9:], **FLOAT32)
    other = ids.clone()
    other[mask == 0] = 7  # whatever stands at padding
    for one, two in zip(states_of(model, other, mask), together, strict=True):
        torch.testing.assert_close(one[mask[:, -20:] == 1], two[mask[:, -20:] == 1], rtol=0, atol=0)


def test_bfloat16_is_as_near_to_float32_as_transformers() -> None:
    peer = text_peer()
    model = our_text_model(text_settings(), peer.state_dict())
    ids, mask = padded([30], 30)
    exact = states_of(model, ids, mask)
    half = our_text_model(text_settings(), peer.bfloat16().state_dict())
    expected = peer(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states_of(half, ids, mask)[0], expected[0], rtol=0, atol=0)
    for true, mine, theirs in zip(exact, states_of(half, ids, mask), expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - true).abs().mean() < 1.2 * (theirs - true).abs().mean() + 1e-6


@pytest.mark.parametrize("form", ["flat", "whole"])
def test_full_size_has_the_published_keys_and_shapes(form: str) -> None:
    published: dict[str, Any] = GEMMA_3_12B if form == "flat" else {"text_config": GEMMA_3_12B, "model_type": "gemma3"}
    config = read_architecture(gemma3.Gemma3TextConfig, published, "text_encoder/config.json")
    with torch.device("meta"):
        module = gemma3.Gemma3TextModel(config)
    assert sum(p.numel() for p in module.parameters()) == 11_766_034_176
    if form == "whole":
        with torch.device("meta"):
            peer = PeerText(PeerConfig(**GEMMA_3_12B))
        shapes = {gemma3.rename(f"language_model.model.{key}"): t.shape for key, t in peer.state_dict().items()}
        assert {key: t.shape for key, t in module.state_dict().items()} == shapes
        state = module(
            torch.zeros(1, 16, dtype=torch.int64, device="meta"), torch.ones(1, 16, dtype=torch.int64, device="meta")
        )
        assert state.shape == (1, 16, 3840)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gemma2"),
        ("hidden_activation", "silu"),
        ("attention_bias", True),
        ("attn_logit_softcapping", 50.0),
        ("use_bidirectional_attention", True),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("head_dim", 15),
        ("sliding_window", 0),
        ("layer_types", ["full_attention"] * 3),
        ("layer_types", ["chunked_attention"] * LAYERS),
        ("rope_scaling", {"rope_type": "yarn", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": "x"}),
        ("rope_scaling", {"rope_type": ["linear"]}),
        ("rope_theta", 0.0),
        ("vocab_size_per_layer_input", 5),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key: str, value: Any) -> None:
    settings = {k: v for k, v in text_settings().items() if k != "rope_parameters"} | {key: value}
    text = message(
        lambda: read_architecture(gemma3.Gemma3TextConfig, {"text_config": settings}, "text_encoder/config.json")
    )
    assert "text_encoder/config.json" in text and "\n" not in text
    assert key in text or "rotary" in text
