"""Embeddings from a file: what it must hold, and what it is recorded as."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from text_services import IDENTITY, NEEDS, embeddings

from diffuse.errors import ConfigError
from diffuse.text_backends.embeddings import Embeddings, TextEncoderIdentity, TextNeeds
from diffuse.text_backends.forms import write_embeddings_file
from diffuse.text_backends.precomputed import PrecomputedTexts
from diffuse.text_backends.random_texts import RandomTexts


def written(folder: Path, values: Embeddings, sha256: str | None = None) -> PrecomputedTexts:
    path = folder / "x.safetensors"
    write_embeddings_file(values, path)
    return PrecomputedTexts(path, sha256)


def test_it_has_the_prompts_of_its_file(tmp_path: Path) -> None:
    texts = written(tmp_path, embeddings("a fox", "", "an owl"))
    assert texts.check(["an owl ", ""], NEEDS) == []
    states = texts.encode(["an owl ", "a fox"], NEEDS)
    for name, each in zip(("an owl", "a fox"), states, strict=True):
        assert torch.equal(each.states, embeddings(name).states[0].states)
    before, digest = texts.key, hashlib.sha256(texts.path.read_bytes()).hexdigest()
    texts.path.unlink()
    write_embeddings_file(embeddings("a fox"), texts.path)
    record = texts.as_record()
    assert record["sha256"] == digest, "of the file that was read"
    assert record["text_encoder"] == IDENTITY.as_json()
    assert texts.key != before  # so that a process does not go on with the earlier ones


def _states(**changes: Any) -> Embeddings:
    values = embeddings("x")
    return replace(values, states=[replace(values.states[0], **changes)])


FIRST = embeddings("x").states[0]


@pytest.mark.parametrize(
    ("values", "needs", "said"),
    [
        (embeddings("a", "b", "c", "d"), NEEDS, "has no embeddings of 'x'; it has 'a', 'b', 'c' and 1 more; diffuse"),
        (embeddings("x"), replace(NEEDS, max_sequence_length=64), "max_sequence_length is 32, and this model takes 64"),
        (embeddings("x"), replace(NEEDS, width=13), "the embeddings are 12 wide, and this model takes 13"),
        (_states(states=FIRST.states * float("inf")), NEEDS, "the embeddings hold NaN or an infinity"),
        (_states(mask=FIRST.mask * 0), NEEDS, "the attention mask is none of zeros and ones"),
        (_states(mask=FIRST.mask * 2), NEEDS, "the attention mask is none of zeros and ones"),
        (_states(mask=FIRST.mask * 0 + 1), NEEDS, "the attention mask is none of zeros and ones"),
        (
            embeddings("x"),
            replace(NEEDS, encoder=TextEncoderIdentity("f" * 64, "b" * 64)),
            "of another model (somewhere): its text encoder aaaaaaaaaaaa, and here ffffffffffff",
        ),
        (
            embeddings("x"),
            replace(NEEDS, encoder=TextEncoderIdentity(None, "f" * 64)),
            f"its connectors bbbbbbbbbbbb, and here ffffffffffff; encode the prompts anew with this model, or accept "
            f"them with text_backend.text_encoder_sha256={'a' * 64}",
        ),
    ],
)
def test_a_file_that_is_not_for_the_model_is_refused(
    tmp_path: Path, values: Embeddings, needs: TextNeeds, said: str
) -> None:
    texts = written(tmp_path, values)
    for call in (texts.check, texts.encode):
        with pytest.raises(ConfigError) as caught:
            call(["x"], needs)
        assert str(caught.value).startswith(f"text_backend.file={texts.path}: ") and said in str(caught.value)


def test_who_made_them_counts_as_far_as_it_is_known(tmp_path: Path) -> None:
    texts = written(tmp_path, embeddings("x"))
    assert texts.check(["x"], replace(NEEDS, encoder=TextEncoderIdentity("a" * 64, "f" * 64))) == []
    assert texts.check(["x"], replace(NEEDS, encoder=TextEncoderIdentity(None, "b" * 64))) == []
    (note,) = texts.check(["x"], replace(NEEDS, encoder=TextEncoderIdentity()))
    assert "does not say which text encoder" in note
    named = PrecomputedTexts(texts.path, "a" * 64)
    assert named.check(["x"], replace(NEEDS, encoder=TextEncoderIdentity(None, "f" * 64))) == []
    with pytest.raises(ConfigError, match="are of the text encoder aaaaaaaaaaaa, and text_backend"):
        PrecomputedTexts(texts.path, "c" * 64).check(["x"], NEEDS)


def test_noise_is_that_of_a_seed_and_a_prompt() -> None:
    texts = RandomTexts(1)
    first, again, other = texts.encode(["a", " a", "b"], NEEDS)
    assert torch.equal(first.states, again.states) and not torch.equal(first.states, other.states)
    assert not torch.equal(first.states, RandomTexts(2).encode(["a"], NEEDS)[0].states)
    assert first.states.shape == (8, NEEDS.width) and int(first.mask.sum()) == 8
    assert texts.check(["a"], NEEDS)[0].startswith("text_backend=random: the embeddings are noise")
    assert texts.as_record() == {"name": "random", "seed": 1}
