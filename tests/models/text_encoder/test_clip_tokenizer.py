"""The CLIP tokenizer against transformers', in both layouts in which checkpoints publish it."""

from __future__ import annotations

import json
from pathlib import Path

import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer as Peer

from diffuse.errors import CheckpointError
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer

LAYOUTS = [("classic", "!"), ("classic", oracle.END), ("fast", "!"), ("fast", oracle.END)]

ODD = [
    "",
    " ",
    "cat,",
    "a cat, the dog and of the rest.",
    "  many\t\nkinds\r\nof\u00a0white\u2003space\u3000 here ",
    "it's they've we'll I'm don't you're he'd O'Clock 'tis ''s",
    "1984 is 12.5% of 15,872",
    "CAPITALS Straße İstanbul ǅ ΟΔΥΣΣΕΥΣ",
    "e\u0301 é ﬁ Å Å",
    "日本語のテキスト 한국어 العربية हिन्दी ไทย",
    "🐈 👩‍👩‍👧‍👦 🇨🇭 👍🏽 ❤️",
    "\x00 \x07 \x1b[0m \u200b \ufeff \u202e \ud7ff \U0010ffff",
    "!!! a! ! !b",
    "a <|startoftext|>b<|endoftext|> c",
    "<|startoftext|> <| endoftext |> <|end",
    '(weights:1.2), [brackets] {braces} = == # % $ \\ / ~ ^ ` "quotes"',
    "x²³ ½ ① Ⅷ ٣ _under_score__",
    "the " * 90,
    "🐈" * 40,
    "supercalifragilisticexpialidocious" * 12,
]

odd_text = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="aAtThHeE '’!,.19sdlvmr\t\n<|>_-", max_size=60),
    st.lists(
        st.sampled_from([*"aé1!🐈\u0301 ", "'s", "'ll", oracle.START, oracle.END, "the ", "cat,"]), max_size=30
    ).map("".join),
)


@pytest.fixture(scope="module", params=LAYOUTS, ids=["-".join(layout) for layout in LAYOUTS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizer, Peer]:
    folder = oracle.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), *request.param)
    present = {path.name for path in folder.iterdir()}
    assert ("tokenizer.json" in present, "vocab.json" in present) == (
        request.param[0] == "fast",
        request.param[0] != "fast",
    )
    return CLIPTokenizer.from_folder(folder), Peer.from_pretrained(folder)


def expected_ids(peer: Peer, texts: list[str]) -> list[list[int]]:
    return peer(texts, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:24]))
def test_odd_texts(pair: tuple[CLIPTokenizer, Peer], text: str) -> None:
    ours, peer = pair
    assert ours([text]).ids.tolist() == expected_ids(peer, [text])


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(odd_text, min_size=1, max_size=3))
@example(texts=["a cat!", "", "<|ENDOFTEXT|>"])
def test_any_text(pair: tuple[CLIPTokenizer, Peer], texts: list[str]) -> None:
    ours, peer = pair
    assert ours(texts).ids.tolist() == expected_ids(peer, texts)


def test_padding_is_the_checkpoints_own(pair: tuple[CLIPTokenizer, Peer]) -> None:
    ours, peer = pair
    ids = ours(["cat"]).ids[0]
    assert ids.shape == (77,)
    assert ids[0] == ours.start == len(oracle.clip_vocabulary()) - 2
    assert ids[-1] == ours.pad == peer.pad_token_id
    assert (ours.pad == 0) == (peer.pad_token == "!")


def test_a_comma_is_a_word_of_its_own(pair: tuple[CLIPTokenizer, Peer]) -> None:
    vocabulary = oracle.clip_vocabulary()
    ids = pair[0](["cat,"]).ids[0, 1:4].tolist()
    assert ids == [vocabulary["ca"], vocabulary["t</w>"], vocabulary[",</w>"]]


def test_what_is_cut_is_shown_in_the_users_own_words(pair: tuple[CLIPTokenizer, Peer]) -> None:
    ours, _ = pair
    fits = "The " * 75
    tokens = ours([fits, fits + "CAT, and\tof  É", "short"])
    assert tokens.cut == ["", "CAT, and\tof  É", ""]
    assert (tokens.ids[0] == tokens.ids[1]).all()
    assert tokens.ids[1, 76] == ours.end


@settings(max_examples=25, deadline=None)
@given(text=odd_text, repeats=st.integers(1, 40))
def test_what_is_cut_is_the_end_of_the_text(pair: tuple[CLIPTokenizer, Peer], text: str, repeats: int) -> None:
    ours, peer = pair
    whole = text * repeats
    cut = ours([whole]).cut[0]
    assert whole.endswith(cut)
    assert bool(cut) == (len(peer(whole).input_ids) > 77)


def test_a_length_other_than_77(tmp_path: Path) -> None:
    folder = oracle.write_tokenizer(tmp_path, "classic", "!")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 16}))
    tokens = CLIPTokenizer.from_folder(folder)(["the " * 20])
    assert tokens.ids.shape == (1, 16)
    assert tokens.cut == ["the " * 6]


def test_settings_that_hold_tokens_as_objects(tmp_path: Path) -> None:
    folder = oracle.write_tokenizer(tmp_path, "classic", "!")
    special = {"content": "!", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": special}))
    assert CLIPTokenizer.from_folder(folder).pad == 0


def test_newer_settings_need_no_map_of_special_tokens(tmp_path: Path) -> None:
    folder = oracle.write_tokenizer(tmp_path, "classic", "!")
    config = folder / "tokenizer_config.json"
    end = {"content": oracle.END, "lstrip": False, "normalized": False, "rstrip": False, "special": True}
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "added_tokens_decoder": {"525": {**end, "single_word": False}}})
    )
    ours, peer = CLIPTokenizer.from_folder(folder), Peer.from_pretrained(folder)
    assert ours.pad == peer.pad_token_id == ours.end


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "neither vocab.json and merges.txt nor tokenizer.json"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "vocab.json: is not JSON"),
        (lambda folder: (folder / "vocab.json").write_text('{"a": 0}'), "cannot be read|has no token"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("no"), "not JSON"),
        (lambda folder: (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}'), "<pad>"),
        (lambda folder: (folder / "special_tokens_map.json").write_text('{"pad_token": 7}'), "pad_token"),
    ],
)
def test_a_damaged_tokenizer_is_one_clear_line(tmp_path: Path, damage: object, message: str) -> None:
    folder = oracle.write_tokenizer(tmp_path, "classic", "!")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message) as error:
        CLIPTokenizer.from_folder(folder)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
