"""Tokenizers with words of their own, in every layout in which trainers save them, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import CLIPTokenizer as Peer

from diffuse.errors import CheckpointError
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer

SIZE = len(oracle.clip_vocabulary())
SPECIAL = {"bos_token": oracle.START, "eos_token": oracle.END, "unk_token": oracle.END}


def entry(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}
    return {"content": content, **plain, **flags}


def write(folder: Path, name: str, content: Any, encoding: str = "utf-8") -> None:
    (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    write(folder, name, {**(json.loads(path.read_text()) if path.is_file() else {}), **values})


def classic(folder: Path) -> Path:
    return oracle.write_tokenizer(folder, "classic", oracle.END)


def decoder(*entries: dict[str, Any]) -> dict[str, Any]:
    numbered = enumerate(entries, SIZE)
    ends = {
        str(SIZE - 2): entry(oracle.START, special=True, normalized=True),
        str(SIZE - 1): entry(oracle.END, special=True, normalized=False),
    }
    return ends | {str(number): value for number, value in numbered}


def textual_inversion(folder: Path) -> None:  # transformers before 4.34: one vector, named in added_tokens.json alone
    write(classic(folder), "added_tokens.json", {"<cat-toy>": SIZE})


def many_vectors(folder: Path) -> None:
    write(classic(folder), "added_tokens.json", {"<Cat>": SIZE, "<Cat>_1": SIZE + 1, "<Cat>_2": SIZE + 2})


def many_vectors_lower(folder: Path) -> None:
    names = [entry(name) for name in ("<cat>", "<cat>_1", "<cat>_2", "sks", "sks_1")]
    change(classic(folder), "tokenizer_config.json", added_tokens_decoder=decoder(*names))


def pivotal_tuning(folder: Path) -> None:
    words = [entry("<s0>"), entry("<s1>"), entry("<TOK>", normalized=False)]
    change(classic(folder), "tokenizer_config.json", added_tokens_decoder=decoder(*words))


def flags(folder: Path) -> None:
    words = [
        entry("<left>", lstrip=True),
        entry("<right>", rstrip=True, normalized=False),
        entry("cat", single_word=True),
        entry("DOG", single_word=True, normalized=False),
        entry("é ü", lstrip=True, rstrip=True),
    ]
    change(classic(folder), "tokenizer_config.json", added_tokens_decoder=decoder(*words))


def further_special(folder: Path) -> None:
    words = [entry("<A>", special=True, normalized=False), entry("<b>", special=True)]
    change(
        classic(folder),
        "tokenizer_config.json",
        added_tokens_decoder=decoder(*words),
        additional_special_tokens=["<A>", "<b>"],
    )


def special_in_older_files(folder: Path) -> None:
    write(classic(folder), "added_tokens.json", {"<A>": SIZE, "<b>": SIZE + 1})
    change(folder, "special_tokens_map.json", additional_special_tokens=["<A>"])


def normalized_ends(folder: Path) -> None:  # as SD 1.x has them
    ends = {key: {**entry(word), "special": None} for key, word in SPECIAL.items()}
    for value in ends.values():
        del value["special"]
    change(classic(folder), "special_tokens_map.json", **ends)


def typed_ends(folder: Path) -> None:
    (classic(folder) / "special_tokens_map.json").unlink()
    ends = {key: {"__type": "AddedToken", **entry(word)} for key, word in SPECIAL.items()}
    for value in ends.values():
        del value["special"]
    change(folder, "tokenizer_config.json", **ends)


def beside(folder: Path) -> None:  # tokenizer.json knows a word that vocab.json and merges.txt do not
    peer = Peer.from_pretrained(classic(folder))
    peer.add_tokens(["<new>", AddedToken("Shout", normalized=False)])
    peer.save_pretrained(folder)
    assert (folder / "vocab.json").is_file() and (folder / "tokenizer.json").is_file()


def beside_with_config(folder: Path) -> None:
    beside(folder)
    change(folder, "tokenizer_config.json", added_tokens_decoder=decoder(entry("<other>"), entry("<new>")))


def whole(folder: Path) -> None:
    beside(folder)
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()


def older_and_whole(folder: Path) -> None:
    beside(folder)
    write(folder, "added_tokens.json", {"<more>": SIZE + 2})


def text_merges(folder: Path) -> None:
    whole(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = oracle.MERGES
    write(folder, "tokenizer.json", content)


def padding_of_its_own(folder: Path) -> None:
    write(classic(folder), "added_tokens.json", {"<pad>": SIZE})
    change(folder, "special_tokens_map.json", pad_token="<pad>")


def spoken(folder: Path) -> None:
    words = [entry("東京"), entry("🐈", normalized=False), entry("Ünïcode"), entry("a b")]
    change(classic(folder), "tokenizer_config.json", added_tokens_decoder=decoder(*words))


LAYOUTS: list[Callable[[Path], None]] = [
    textual_inversion,
    many_vectors,
    many_vectors_lower,
    pivotal_tuning,
    flags,
    further_special,
    special_in_older_files,
    normalized_ends,
    typed_ends,
    beside,
    beside_with_config,
    whole,
    older_and_whole,
    text_merges,
    padding_of_its_own,
    spoken,
]

PROMPTS = [
    "a photo of <cat-toy>",
    "A PHOTO OF <CAT-TOY>, and<cat-toy>the<Cat-Toy>",
    "<Cat> in a hat, <cat>, <CAT> <Cat>",
    "sks dog, SKS, sksdog <cat>sks <cat>",
    "a <s0><s1> of the <TOK> and <tok> and < s0 >",
    "the <left> cat <right>  cats category DOG DOGS dog",
    "x   <left>y<right>   z é ü  É Ü é ü",
    "<A> <a> <b> <B>",
    "<|startoftext|> <|STARTOFTEXT|> a <|EndOfText|> b <|endoftext|>",
    "a<|ENDOFTEXT|>b <|endoftext|",
    "<new> <NEW> Shout SHOUT shout <other> <more>",
    "<pad> a <PAD>!",
    "東京タワー 🐈🐈 Ünïcode ÜNÏCODE ünïcode a  b A\tB a b",
    "the " * 74 + "<cat> <s0> <cat-toy>",
    "",
]

pieces = [*{word for prompt in PROMPTS for word in prompt.split(" ") if word}, " ", "  ", "\n", ",", "the", "_1", "Cat"]
any_prompt = st.lists(st.sampled_from(sorted(pieces)), max_size=12).flatmap(
    lambda words: st.sampled_from(["", " "]).map(lambda joint: joint.join(words))
)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.__name__)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizer, Peer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param(folder)
    return CLIPTokenizer.from_folder(folder), Peer.from_pretrained(folder)


def expected(peer: Peer, prompt: str) -> list[int]:
    prompt = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, peer)
    ids: list[int] = peer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    return ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda text: ascii(text[:24]))
def test_prompts(pair: tuple[CLIPTokenizer, Peer], prompt: str) -> None:
    ours, peer = pair
    assert ours([prompt]).ids[0].tolist() == expected(peer, prompt)


@settings(max_examples=40, deadline=None)
@given(prompt=any_prompt)
def test_any_prompt(pair: tuple[CLIPTokenizer, Peer], prompt: str) -> None:
    ours, peer = pair
    if "_1" not in prompt:  # diffusers expands a first vector inside the name of a second, which is typed by no one
        assert ours([prompt]).ids[0].tolist() == expected(peer, prompt)


def test_all_words_are_counted(pair: tuple[CLIPTokenizer, Peer]) -> None:
    ours, peer = pair
    assert ours.vocab_size == len(peer)


def test_numbers_are_the_published_ones_where_some_are_left_out(tmp_path: Path) -> None:
    write(classic(tmp_path), "added_tokens.json", {"<far>": SIZE + 7})
    ours = CLIPTokenizer.from_folder(tmp_path)
    assert ours(["<far>"]).ids[0, 1] == SIZE + 7
    assert ours.vocab_size == SIZE + 8


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    pivotal_tuning(tmp_path)
    before = CLIPTokenizer.from_folder(tmp_path)([PROMPTS[4]]).ids
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert CLIPTokenizer.from_folder(tmp_path)([PROMPTS[4]]).ids.equal(before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<cat>": 3}, "the same number 3"),
        ("added_tokens.json", {"<cat>": "x"}, "describes no added token"),
        ("added_tokens.json", {"<cat>": -1}, "describes no added token"),
        ("added_tokens.json", [1], "not a JSON object"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "not by number"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": "x"}}, "describes no added token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": {}}}, "describes no added token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {}, "eos_token": 7}, "eos_token is 7"),
        ("tokenizer.json", {"model": {"vocab": {"a": "b"}, "merges": []}}, "cannot be read|no token"),
        ("tokenizer.json", {"model": {"vocab": oracle.clip_vocabulary(), "merges": [["a"]]}}, "cannot be read"),
        ("tokenizer.json", {"model": [], "added_tokens": 3}, "no words and merges"),
    ],
)
def test_damage_is_told_in_one_line(name: str, content: Any, message: str, tmp_path: Path) -> None:
    write(classic(tmp_path), name, content)
    with pytest.raises(CheckpointError, match=message) as caught:
        CLIPTokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["classic", "fast"])
def test_every_file_may_have_a_byte_order_mark(layout: str, tmp_path: Path) -> None:
    text = "the Cat and other dogs 5"
    expected = CLIPTokenizer.from_folder(oracle.write_tokenizer(tmp_path / "plain", layout, "!"))([text])
    folder = oracle.write_tokenizer(tmp_path / "marked", layout, "!")
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert CLIPTokenizer.from_folder(folder)([text]).ids.equal(expected.ids)


@pytest.mark.parametrize("line", ["onlyone", "a b c", "a  b"])
def test_a_line_of_merges_that_is_no_pair_is_said(line: str, tmp_path: Path) -> None:
    folder = classic(tmp_path / "t")
    (folder / "merges.txt").write_text(f"#version: 0.2\nt h\n{line}\n")
    with pytest.raises(CheckpointError, match=r"merges.txt: line 3 is not two parts of a word"):
        CLIPTokenizer.from_folder(folder)


@pytest.mark.parametrize("key", ["padding_side", "truncation_side"])
def test_another_side_is_refused_by_name(key: str, tmp_path: Path) -> None:
    change(classic(tmp_path), "tokenizer_config.json", **{key: "right"})
    CLIPTokenizer.from_folder(tmp_path)
    change(tmp_path, "tokenizer_config.json", **{key: "left"})
    with pytest.raises(CheckpointError, match=f"tokenizer_config.json: {key}=left is not implemented"):
        CLIPTokenizer.from_folder(tmp_path)
