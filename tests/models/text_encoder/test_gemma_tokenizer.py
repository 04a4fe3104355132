"""Gemma's tokenizer against transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import message
from gemma_peers import tokenizer_peer
from transformers import AutoTokenizer

from diffuse.models.text_encoder.gemma_tokenizer import GemmaTokenizer

TEXTS = [
    "",
    " \n the robot in the ring \t",
    "the  thing,  in   the room",
    "é ß 猫 🐈‍⬛ \u00a0 Ⅻ ﬁ",
    "<bos> <pad><eos>the<mask> <unk>",
    "a\nb\tc",
    "THE THe the'the",
    "the ring and the room " * 20,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gemma") / "tokenizer"
    tokenizer_peer(add_bos_token=True).save_pretrained(place)  # which is a template in tokenizer.json
    return place


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy with other settings; None takes one out."""

    def make(whole: dict[str, Any] | None = None, **settings: Any) -> Path:
        for name, changes in (("tokenizer_config.json", settings), ("tokenizer.json", whole or {})):
            content = json.loads((folder / name).read_text()) | changes
            (tmp_path / name).write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))
        return tmp_path

    return make


@pytest.mark.parametrize("length", [8, 24, 256])
def test_tokens_are_those_of_transformers(folder: Path, length: int) -> None:
    peer: Any = AutoTokenizer.from_pretrained(folder)
    assert peer("").input_ids == [2]
    peer.padding_side = "left"
    stripped = [text.strip() for text in TEXTS]
    expected = peer(
        stripped, padding="max_length", max_length=length, truncation=True, add_special_tokens=True, return_tensors="pt"
    )
    tokenizer = GemmaTokenizer.from_folder(folder)
    tokens = tokenizer(TEXTS, length)
    assert tokens.ids.tolist() == expected.input_ids.tolist()
    assert tokens.mask.tolist() == expected.attention_mask.tolist()
    assert tokenizer.vocab_size == len(peer)
    for text, ids, cut in zip(stripped, peer(stripped).input_ids, tokens.cut, strict=True):
        assert bool(cut) == (len(ids) > length)
        assert text.endswith(cut)


def test_the_words_that_do_not_fit_are_named(folder: Path) -> None:
    tokens = GemmaTokenizer.from_folder(folder)(["猫 in the room", "猫"], 5)
    assert tokens.cut == ["in the room", ""]  # the cat is three bytes, and the space a token


def test_padding_and_cutting_of_the_file_do_not_count(changed: Callable[..., Path], folder: Path) -> None:
    whole = {
        "truncation": {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 3,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    }
    other = GemmaTokenizer.from_folder(changed(whole, padding_side="right", model_max_length=2))(TEXTS, 16)
    expected = GemmaTokenizer.from_folder(folder)(TEXTS, 16)
    assert (other.ids.tolist(), other.mask.tolist(), other.cut) == (
        expected.ids.tolist(),
        expected.mask.tolist(),
        expected.cut,
    )


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({}, [0, 0, 2, 326]),
        ({"add_bos_token": False}, [0, 0, 0, 326]),
        ({"add_eos_token": True}, [0, 2, 326, 1]),
        ({"add_bos_token": True, "add_eos_token": False}, [0, 0, 2, 326]),
        ({"pad_token": None}, [1, 1, 2, 326]),  # as diffusers does
        ({"pad_token": "absent"}, [0, 0, 2, 326]),
        ({"add_bos_token": True, "bos_token": {"content": "<mask>", "special": True}}, [0, 0, 4, 326]),
        ({"model_max_length": 10**30}, [0, 0, 2, 326]),
    ],
    ids=str,
)
def test_settings_are_obeyed(changed: Callable[..., Path], settings: dict[str, Any], row: list[int]) -> None:
    assert GemmaTokenizer.from_folder(changed(**settings))(["a"], 4).ids.tolist() == [row]


def test_what_the_file_puts_around_a_text_is_put_there(changed: Callable[..., Path]) -> None:
    for special, row in (([], [0, 0, 0, 326]), ([("<eos>", 1)], [0, 0, 326, 1])):
        template = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}]
            + [{"SpecialToken": {"id": word, "type_id": 0}} for word, _ in special],
            "pair": [],
            "special_tokens": {word: {"id": word, "ids": [id_], "tokens": [word]} for word, id_ in special},
        }
        place = changed({"post_processor": template}, add_bos_token="absent")
        assert GemmaTokenizer.from_folder(place)(["a"], 4).ids.tolist() == [row]
        assert AutoTokenizer.from_pretrained(place)("a").input_ids == [id_ for id_ in row if id_]


def test_a_text_keeps_its_start_and_end_where_little_fits(changed: Callable[..., Path]) -> None:
    tokenizer = GemmaTokenizer.from_folder(changed(add_eos_token=True))
    assert tokenizer(["a b"], 2)[0].tolist() == [[2, 1]]
    assert tokenizer(["a b"], 2).cut == ["a b"]
    with pytest.raises(ValueError, match="max_length=1"):
        tokenizer(["a"], 1)


def test_files_that_cannot_be_used_are_refused_in_one_line(changed: Callable[..., Path], tmp_path: Path) -> None:
    def says(place: Path) -> str:
        text = message(lambda: GemmaTokenizer.from_folder(place))
        assert "\n" not in text and str(place) in text
        return text

    assert "tokenizer.json is not there" in says(tmp_path / "nowhere")
    assert "bos_token '<start>'" in says(changed(add_bos_token=True, bos_token="<start>"))
    assert "pad_token '<none>'" in says(changed(pad_token="<none>"))
    assert "bos_token 5" in says(changed(add_bos_token=True, bos_token=5))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert "is not a JSON object" in says(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    assert "cannot be read" in says(tmp_path)
