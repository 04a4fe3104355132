"""CLIP's text encoder against transformers'."""

from __future__ import annotations

import oracle
import pytest
import torch
from model_peers import FLOAT32, ours, token_ids
from oracle import Variant

TEXTS = {
    "gelu": Variant(),
    "quick gelu, own end token": Variant(hidden_act="quick_gelu", eos_token_id=None),
    "deep": Variant(text_layers=5, text_width=48),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("projection", [None, 24])
def test_text_encoder_agrees_with_transformers(name: str, projection: int | None) -> None:
    peer = oracle.text_encoder(TEXTS[name], projection)
    expected = peer(token_ids(), output_hidden_states=True)
    result = ours("text_encoder", peer)(token_ids())
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, **FLOAT32)
    assert len(result.hidden_states) == TEXTS[name].text_layers + 1
    for mine, theirs in zip(result.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, **FLOAT32)
    pooled = expected.pooler_output if projection is None else expected.text_embeds
    torch.testing.assert_close(result.pooled, pooled, **FLOAT32)


def test_text_encoder_gives_the_states_of_shorter_texts() -> None:
    peer = oracle.text_encoder(Variant())
    ids = token_ids()[:, :20]
    torch.testing.assert_close(ours("text_encoder", peer)(ids)[0], peer(ids).last_hidden_state, **FLOAT32)


@pytest.mark.parametrize("eos_token_id", [2, None])
def test_learned_vectors_stand_behind_the_vocabulary(eos_token_id: int | None) -> None:
    """With the published end token, 2, the pooled state is that of the largest number: of a learned word."""
    peer = oracle.text_encoder(Variant(eos_token_id=eos_token_id), 24)
    mine, learned = ours("text_encoder", peer), torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    ids = token_ids().clone()
    size = peer.config.vocab_size
    ids[0, 3:6] = torch.tensor([size, size + 1, size + 2])
    result = mine(ids, 0, learned)
    peer.resize_token_embeddings(size + 3, mean_resizing=False)
    peer.get_input_embeddings().weight.data[size:] = learned
    expected = peer(ids)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, **FLOAT32)
    torch.testing.assert_close(result.pooled, expected.text_embeds, **FLOAT32)
    assert torch.equal(mine(token_ids(), 0, learned).pooled, mine(token_ids()).pooled)
