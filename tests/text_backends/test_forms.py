"""The two forms of embeddings, read back, and what is no such form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from text_services import TOKENS, WIDTH, embeddings

from diffuse.errors import ConfigError
from diffuse.text_backends.forms import (
    from_json,
    from_safetensors,
    read_embeddings_file,
    to_json,
    to_safetensors,
    write_embeddings_file,
)

PROMPTS = ("a fox", "", "x" * 100)


def test_each_form_is_read_back_to_the_bit(tmp_path: Path) -> None:
    written = embeddings(*PROMPTS)
    path = tmp_path / "x.safetensors"
    write_embeddings_file(written, path)
    for found in (
        from_safetensors(to_safetensors(written), "x"),
        from_json(to_json(written), PROMPTS, TOKENS, "x"),
        read_embeddings_file(path, "x"),
    ):
        assert (found.max_sequence_length, found.encoder) == (written.max_sequence_length, written.encoder)
        assert [*found.prompts] == [*PROMPTS] and [each.cut for each in found.states] == ["", "", "x" * 69]
        for ours, theirs in zip(found.states, written.states, strict=True):
            assert torch.equal(ours.states, theirs.states) and torch.equal(ours.mask, theirs.mask)
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        write_embeddings_file(written, path)
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_embeddings_file(written, tmp_path / "nowhere" / "x.safetensors")


def test_json_of_another_service_needs_two_lists() -> None:
    """Shorter than was asked for, and padded on the right."""
    values = {"embeddings": [[[1.0] * WIDTH, [2.0] * WIDTH]], "attention_mask": [[1, 0]]}
    found = from_json(json.dumps(values).encode(), ["x"], TOKENS, "x")
    assert found.states[0].states.shape == (2, WIDTH)
    assert found.states[0].mask.tolist() == [0] * (TOKENS - 2) + [1, 0]


ROW = [[0.0] * WIDTH]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "the answer is no JSON; is it a service of text embeddings"),
        (b"[" * 100_000, "the answer is no JSON"),
        (b"null", "has no embeddings [B][T][D] with an attention_mask [B][T] of numbers"),
        ({"embeddings": [ROW]}, "has no embeddings"),
        ({"embeddings": [[[0.0], [0.0, 1.0]]], "attention_mask": [[1, 1]]}, "has no embeddings"),
        ({"embeddings": [[["x"]]], "attention_mask": [[1]]}, "has no embeddings"),
        ({"embeddings": {"a": 1}, "attention_mask": [[1]]}, "has no embeddings"),
        ({"embeddings": ROW, "attention_mask": [[1]]}, "has embeddings [1, 12] with an attention_mask [1, 1]"),
        ({"embeddings": [ROW], "attention_mask": [[1, 1]]}, "has embeddings [1, 1, 12] with an attention_mask [1, 2]"),
        ({"embeddings": [[]], "attention_mask": [[]]}, "has embeddings [1, 0]"),
        ({"embeddings": [ROW], "attention_mask": [[2]]}, "or a mask of other than 0 and 1"),
        ({"embeddings": [ROW * 33], "attention_mask": [[1] * 33]}, "has 33 tokens of 32"),
        ({"embeddings": [ROW], "attention_mask": [[1]], "max_sequence_length": 10**12}, "that is none"),
    ],
)
def test_nonsense_is_one_line(answer: Any, said: str) -> None:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(ConfigError) as caught:
        from_json(data, ["x"], TOKENS, "http://x")
    assert said in str(caught.value) and str(caught.value).startswith("http://x: ")


def _with(**changes: Any) -> Callable[[], bytes]:
    states, mask = torch.zeros(2, WIDTH), torch.ones(TOKENS, dtype=torch.uint8)
    values = {"prompts": ["x"], "cut": [""], "max_sequence_length": TOKENS, "text_encoder": {}}
    tensors = {"prompt_embeds.0": states, "attention_mask.0": mask}
    tensors |= {name.replace("_0", ".0"): value for name, value in changes.items() if name.endswith("_0")}
    metadata = {"format": "diffuse-text-embeddings", "version": "1"} | {
        name: json.dumps(value) for name, value in (values | changes).items() if name in values
    }
    metadata |= {name: value for name, value in changes.items() if name in ("format", "version")}
    return lambda: save({name: value for name, value in tensors.items() if value is not None}, metadata)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: b"", "is no safetensors data"),
        (lambda: b"\xff" * 100, "is no safetensors data"),
        (lambda: _with()()[:-5], "is no safetensors data"),
        (lambda: save({"x": torch.zeros(1)}), "holds no embeddings of prompts; diffuse encode writes them"),
        (_with(version="2"), "was written by a later version of diffuse"),
        (_with(prompts="x"), "has damaged metadata"),
        (_with(prompts=["x", "y"]), "has damaged metadata"),
        (_with(prompts=[], cut=[]), "has damaged metadata"),
        (_with(max_sequence_length="x"), "has damaged metadata"),
        (_with(prompt_embeds_0=None), "has no states of prompt 1"),
        (_with(prompt_embeds_0=torch.zeros(WIDTH)), "has states [12] with an attention_mask [32]"),
        (_with(prompt_embeds_0=torch.zeros(2, WIDTH, dtype=torch.int64)), "has states [2, 12]"),
        (_with(attention_mask_0=torch.ones(1, dtype=torch.uint8)), "has states [2, 12] with an attention_mask [1]"),
    ],
)
def test_other_bytes_are_one_line(data: Callable[[], bytes], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_safetensors(data(), "FILE")
    assert said in str(caught.value) and str(caught.value).startswith("FILE: ")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for name, said in (("none", "there is no such file; diffuse encode"), ("text", "cannot be read: it is no safe")):
        (tmp_path / "text").write_text("x")
        with pytest.raises(ConfigError, match=said):
            read_embeddings_file(tmp_path / name, "FILE")
