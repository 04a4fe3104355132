"""Rotary embeddings and their attention, from their definitions; models that have them are held against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from model_peers import is_packed
from torch import Tensor, nn

from diffuse.layers.rotary import GELUFeedForward, RotaryAttention, rotation_at

HEADS, HEAD_DIM, TOKENS = 2, 8, 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(**options: object) -> RotaryAttention:
    torch.manual_seed(0)
    module = RotaryAttention(12, HEADS, HEAD_DIM, **options)  # type: ignore[arg-type]
    for norm in (module.norm_q, module.norm_k):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return module


@pytest.mark.parametrize("interleaved", [True, False])
def test_pairs_are_turned_by_their_angles(interleaved: bool) -> None:
    positions = torch.tensor([0.25, 0.5, 0.75])[:, None]
    rotation = rotation_at(positions, heads=HEADS, head_dim=HEAD_DIM, theta=16.0)
    x = noise(1, 3, HEADS, HEAD_DIM)
    turned = rotation.rotate(x, interleaved=interleaved)
    pairs = HEADS * HEAD_DIM // 2
    for token, position in enumerate(positions.flatten().tolist()):
        for pair in range(pairs):
            head, inner = divmod(pair, HEAD_DIM // 2)
            angle = (position * 2 - 1) * 16.0 ** (pair / (pairs - 1)) * math.pi / 2
            one, two = (2 * inner, 2 * inner + 1) if interleaved else (inner, inner + HEAD_DIM // 2)
            before = complex(x[0, token, head, one], x[0, token, head, two])
            after = complex(turned[0, token, head, one], turned[0, token, head, two])
            assert after == pytest.approx(before * complex(math.cos(angle), math.sin(angle)), abs=1e-5)


def test_axes_alternate_after_pairs_that_stay() -> None:
    positions = torch.tensor([[0.3, 0.8, 0.6]])
    rotation = rotation_at(positions, heads=HEADS, head_dim=HEAD_DIM, theta=9.0)  # eight pairs, two for each axis
    assert rotation.cosines.shape == (1, HEADS, HEAD_DIM // 2)
    angles = torch.atan2(rotation.sines, rotation.cosines).flatten()
    slow = (positions[0] * 2 - 1) * math.pi / 2
    expected = torch.cat((torch.zeros(2), slow, slow * 9))
    torch.testing.assert_close(angles, torch.atan2(expected.sin(), expected.cos()))


def test_precision_of_the_frequencies() -> None:
    position = torch.tensor([[0.9]])
    exact, rounded = (
        rotation_at(position, heads=32, head_dim=128, theta=1e4, double_precision=double) for double in (True, False)
    )
    difference = float((exact.cosines - rounded.cosines).abs().max())
    assert 1e-5 < difference < 1e-2


def test_attention_is_that_of_its_definition() -> None:
    module = attention(context_dim=10)
    x, context = noise(2, TOKENS, 12), noise(2, 7, 10, seed=1)
    q = F.rms_norm(module.to_q(x), (16,), module.norm_q.weight, 1e-6)  # over both heads together
    k = F.rms_norm(module.to_k(context), (16,), module.norm_k.weight, 1e-6)
    q, k, v = (t.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for t in (q, k, module.to_v(context)))
    seen = (q @ k.transpose(-1, -2) / HEAD_DIM**0.5).softmax(-1) @ v
    torch.testing.assert_close(module(x, context), module.to_out[0](seen.transpose(1, 2).flatten(2)))


def test_only_differences_of_places_count() -> None:
    module = attention()
    x, place = noise(1, TOKENS, 12), torch.arange(TOKENS)[:, None] / 20
    near, far = (rotation_at(place + shift, heads=HEADS, head_dim=HEAD_DIM, theta=10.0) for shift in (0.0, 0.4))
    torch.testing.assert_close(module(x, rotation=near), module(x, rotation=far), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(module(x, rotation=near), module(x), atol=1e-2)
    assert not torch.allclose(module(x, rotation=near), module(x, rotation=near, context_rotation=far), atol=1e-2)


def test_a_perturbed_token_takes_its_own_value() -> None:
    module = attention(gated=True)
    x = noise(2, TOKENS, 12)
    assert module.to_gate_logits is not None
    gates = (2 * module.to_gate_logits(x).sigmoid()).repeat_interleave(HEAD_DIM, dim=-1)
    perturbed = module.to_out[0](module.to_v(x) * gates)
    torch.testing.assert_close(module(x, perturbed=True), perturbed)
    some = module(x, perturbed=torch.tensor([False, True]))
    torch.testing.assert_close(some, torch.stack((module(x)[0], perturbed[1])))


def test_a_mask_hides_tokens() -> None:
    module = attention()
    x = noise(1, TOKENS, 12)
    hidden = torch.where(torch.arange(TOKENS) < 3, 0.0, -10000.0)[None, None, None]
    torch.testing.assert_close(module(x, mask=hidden), module(x, x[:, :3]))


@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward(bias: bool) -> None:
    torch.manual_seed(0)
    module = GELUFeedForward(6, bias=bias)
    state = module.state_dict()
    assert set(state) == {f"net.{place}.{kind}" for place in ("0.proj", "2") for kind in ("weight", "bias")[: 1 + bias]}
    x = noise(3, 6)
    inner = F.gelu(x @ state["net.0.proj.weight"].T + state.get("net.0.proj.bias", 0), approximate="tanh")
    torch.testing.assert_close(module(x), inner @ state["net.2.weight"].T + state.get("net.2.bias", 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain, packed = (
        nn.Sequential(RotaryAttention(320, 4, 80, packed=packs, gated=True), GELUFeedForward(320, packed=packs))
        for packs in (False, True)
    )
    packed.load_state_dict(plain.state_dict())
    x = noise(1, TOKENS, 320).to(dtype)
    found = packed.to(dtype).requires_grad_(False)(x)
    assert packed[0].to_q.weight.is_mkldnn == is_packed(dtype)  # type: ignore[union-attr]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, plain.to(dtype)(x), rtol=tolerance, atol=tolerance)
