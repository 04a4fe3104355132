"""Values of a record: plain JSON, without secrets."""

from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffuse.record.record import run_record
from diffuse.record.values import flatten, indented_json, json_values, redact
from diffuse.schema import GenerationRequest

SECRETS = {
    "tracking.uri=https://me:hunter2@example.org/x": "hunter2",
    "tracking.uri=http://hunter2@example.org": "hunter2",
    "model.source=https://example.org/x?token=hunter2&a=b": "hunter2",
    "model.source=https://example.org/x?a=b&X-Amz-Signature=hunter2": "hunter2",
    "output.name=hf_abcdefghijklmnopqrstuvwx": "abcdefghijklmnopqrstuvwx",
    "+hydra.api_key=hunter2": "hunter2",
    "tracking.password=hunter2": "hunter2",
}


@pytest.mark.parametrize("override", SECRETS)
def test_secrets_are_taken_out(override: str) -> None:
    key, _, value = override.lstrip("+").partition("=")
    config = OmegaConf.create({})
    OmegaConf.update(config, key, value)
    request = GenerationRequest(
        prompt="a prompt",
        negative_prompt="",
        seed=1,
        num_images=1,
        width=8,
        height=8,
        num_inference_steps=1,
        guidance_scale=1.0,
    )
    made = run_record(config, [override], request, weights={"source": value if "source" in key else ""}, hardware={})
    assert SECRETS[override] not in indented_json(made)
    assert "***" in made["overrides"][0]


def test_prompts_are_kept_to_the_letter() -> None:
    text = "https://me:you@example.org hf_abcdefghijklmnopqrstuvwx Bearer abcdefgh12345 ?token=x"
    request = GenerationRequest(
        prompt=text,
        negative_prompt=text,
        seed=1,
        num_images=1,
        width=8,
        height=8,
        num_inference_steps=1,
        guidance_scale=1.0,
    )
    config = {"prompt": text, "negative_prompt": text}
    made = run_record(config, [f"prompt={text}", f"negative_prompt={text}"], request, weights={}, hardware={})
    assert made["request"]["prompt"] == made["config"]["prompt"] == made["config"]["negative_prompt"] == text
    assert made["overrides"] == [f"prompt={text}", f"negative_prompt={text}"]


class Colour(Enum):
    red = 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=4)
    | st.sampled_from([Colour.red, Path("a/b"), np.float32(0.5), np.int64(3), torch.tensor(2.0), torch.float16]),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
@example([math.nan, math.inf, {1: {2: {None: Colour.red}}}])
def test_any_value_becomes_what_json_holds(value: Any) -> None:
    plain = json_values(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert json_values(plain) == plain
    if isinstance(value, bool | int | str) or value is None:
        assert plain is value


def test_values_keep_what_they_say() -> None:
    assert json_values({"a": Colour.red, "b": (1, Path("x/y")), "c": np.float64(0.25), "d": {3, 1, 2}}) == {
        "a": "red",
        "b": [1, "x/y"],
        "c": 0.25,
        "d": [1, 2, 3],
    }
    assert flatten({"a": {"b": 1, "c": {"d": [2, 3]}, "e": {}}, "f": None}) == {
        "a.b": 1,
        "a.c.d": [2, 3],
        "f": None,
    }


def test_a_secret_in_braces_is_taken_out_and_the_word_of_an_embedding_is_none() -> None:
    hidden = [
        'text_backend={name: api, url: "http://h", token: abcdefgh}',
        "text_backend={token: 'ab, cd', name: api}",
        "x=[{api_key: abcdefgh}, {b: 1}]",
    ]
    for override in hidden:
        (found,) = redact([override], "overrides")
        assert "***" in found and "abcd" not in found and "ab, cd" not in found, found
    words = {"embedding": [{"source": "a.pt", "token": "<cat>"}]}
    assert redact(words) == words
    typed = ['embedding=[{source: a.pt, token: "<cat>"}]', "embedding.0.token=<cat>"]
    assert redact(typed, "overrides") == typed
    secret = "https://x/a.pt?token=abcdefgh"
    assert "abcdefgh" not in str(redact({"embedding": [{"source": secret, "token": "<cat>"}]}))
    assert "abcdefgh" not in str(redact([f"embedding={secret}"], "overrides"))
