"""Weights in prompts: what is read of them, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import command
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from picture_parity import refused

from diffuse.config.prompt_syntax import Part, parse_prompt
from diffuse.errors import ConfigError

EXAMPLES: dict[str, list[tuple[str, float]]] = {
    "": [],
    "()": [],
    "a cat, 16:9": [("a cat, 16:9", 1)],
    "a (cat:1.3) here": [("a ", 1), ("cat", 1.3), (" here", 1)],
    "(cat)": [("cat", 1.1)],
    "[cat]": [("cat", 1 / 1.1)],
    "((cat))": [("cat", 1.1 * 1.1)],
    "[[cat]]": [("cat", 1 / 1.1 / 1.1)],
    "([cat])": [("cat", 1)],
    "(a (b:2) c:0.5)": [("a ", 0.5), ("b", 1), (" c", 0.5)],
    "(a\n[b]: +1.5e0 )": [("a\n", 1.5), ("b", 1.5 / 1.1)],
    "(a:0)(b:-1)(c:.5)(d:2.)": [("a", 0), ("b", -1), ("c", 0.5), ("d", 2)],
    "(16:9 picture:1.2)": [("16:9 picture", 1.2)],
    "(a:1.2 (b))": [("a:1.2 ", 1.1), ("b", 1.1 * 1.1)],
    "(16:9)": [("16", 9)],
    r"(16\:9)": [("16:9", 1.1)],
    r"\(cat:1.3\) \[x\] \\": [(r"(cat:1.3) [x] \ "[:-1], 1)],
    r"(:\):1.5) C:\path \ ": [(":)", 1.5), (" C:\\path \\ ", 1)],
    r"\\(cat)": [("\\", 1), ("cat", 1.1)],
    "[time: noon]": [("time: noon", 1 / 1.1)],
    "(é🐈:1.5)日本": [("é🐈", 1.5), ("日本", 1)],
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(text: str) -> None:
    parts = parse_prompt(text)
    assert [part.text for part in parts] == [piece for piece, _ in EXAMPLES[text]]
    assert [part.weight for part in parts] == pytest.approx([weight for _, weight in EXAMPLES[text]])


REFUSED = {
    "a (cat, (dog)": r"the ( of '(cat, (dog)' is not closed; add the ), or write \( for the character",
    "[cat": r"the [ of '[cat' is not closed; add the ], or write \[ for the character",
    "cat) dog": r"the ) at the end of 'cat)' is not opened; add the (, or write \) for the character",
    "(cat]": r"the ] at the end of '(cat]' is not opened",
    "a (cat:) b": r"the weight of '(cat:)' is empty; add a number, or write \: for the colon",
    "(cat: )": "the weight of '(cat: )' is empty",
    "(cat:much)": r"the weight of '(cat:much)' is not a finite number, such as 1.3; write \: for the colon itself",
    "(cat:1.2.3)": "the weight of '(cat:1.2.3)' is not a finite number",
    "(cat:1,3)": "the weight of '(cat:1,3)' is not a finite number",
    "(cat:nan)": "the weight of '(cat:nan)' is not a finite number",
    "(cat:-inf)": "the weight of '(cat:-inf)' is not a finite number",
    "(cat:1e999)": "the weight of '(cat:1e999)' is not a finite number",
    "(cat:１.３)": "the weight of '(cat:１.３)' is not a finite number",
    "((cat:1e200):1e200)": "multiply to more than a number can be",
    "[cat:0.5]": "'[cat:0.5]': square brackets take no weight; write '(cat:0.5)'",
    "(a\nb": r"the ( of '(a\nb' is not closed",
    f"({'long ' * 30}": f"the ( of '({'long ' * 7}long...' is not closed",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:20]))
def test_mistakes_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_prompt(text, "negative_prompt")
    assert REFUSED[text] in str(error.value)
    assert str(error.value).startswith("negative_prompt: ")
    assert str(error.value).isprintable()


def escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r"()[]:\\" else c for c in text)


texts = st.text(max_size=12) | st.text(alphabet="ab ,:\\()[]1.", max_size=12)


@given(texts)
@example("\\" * 5 + "(")
def test_escaped_text_comes_back(text: str) -> None:
    assert parse_prompt(escaped(text)) == ([Part(text, 1.0)] if text else [])


weights = st.floats(-4, 4).map(lambda weight: round(weight, 3))
trees = st.recursive(
    texts,
    lambda inside: st.tuples(
        st.sampled_from(["(", "["]) | weights,  # a pair of brackets, or a weight
        st.lists(inside, max_size=3),
    ),
    max_leaves=12,
)


def written(tree: Any) -> str:
    if isinstance(tree, str):
        return escaped(tree)
    kind, inside = tree
    content = "".join(map(written, inside))
    return f"({content})" if kind == "(" else f"[{content}]" if kind == "[" else f"({content}:{kind!r})"


def weighed(tree: Any, weight: float = 1.0) -> list[tuple[str, float]]:
    """Character by character, what the tree means."""
    if isinstance(tree, str):
        return [(c, weight) for c in tree]
    kind, inside = tree
    factor = 1.1 if kind == "(" else 1 / 1.1 if kind == "[" else kind
    return [pair for part in inside for pair in weighed(part, weight * factor)]


@settings(max_examples=200, deadline=None)
@given(st.lists(trees, max_size=4))
def test_brackets_within_brackets_multiply(trees: list[Any]) -> None:
    expected = [pair for tree in trees for pair in weighed(tree)]
    parts = parse_prompt("".join(map(written, trees)))
    assert "".join(part.text for part in parts) == "".join(c for c, _ in expected)
    found = [part.weight for part in parts for _ in part.text]
    assert found == pytest.approx([weight for _, weight in expected])
    assert all(one.weight != other.weight for one, other in pairwise(parts))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="a1.:()[]\\- e", max_size=40))
def test_any_text_is_read_or_refused_in_a_line(text: str) -> None:
    try:
        parts = parse_prompt(text)
    except ConfigError as error:
        assert str(error).isprintable() and len(str(error)) < 250
    else:
        assert all(math.isfinite(part.weight) and part.text for part in parts)
        if not set(text) & set("()[]\\"):
            assert "".join(part.text for part in parts) == text


def test_long_texts_take_little_time() -> None:
    assert len(parse_prompt("(a:1.1) b " * 5_000)) == 10_000
    assert parse_prompt("[" * 2000 + "a" + "]" * 2000)[0].weight == pytest.approx(1.1**-2000)
    assert parse_prompt(":" * 100_000) == [Part(":" * 100_000, 1.0)]


# By the command


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "prompt_2", "negative_prompt_2"])
def test_each_text_is_checked(field: str, tmp_path: Path) -> None:
    source = ("model=sdxl", "model.source=nowhere", "prompt=x") if field.endswith("2") else ()
    done = command.diffuse(*source, f"{field}=a (cat", "prompt_syntax=weighted", "output.dir=out", cwd=tmp_path)
    refused(done, f"{field}: the ( of '(cat' is not closed", tmp_path / "out")


def test_each_line_of_a_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na (dog:1.2\n")
    done = command.diffuse("prompt_file=prompts.txt", "prompt_syntax=weighted", "output.dir=out", cwd=tmp_path)
    refused(done, "prompt: the ( of '(dog:1.2' is not closed", tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompt_syntax=heavy", "prompt_syntax"),
        ("long_prompt=cat", "long_prompt"),
        ("+model.request_defaults.long_prompt=cat", "long_prompt=cat: should be one of cut, chunk"),
    ],
)
def test_choices_that_there_are_not(override: str, said: str, tmp_path: Path) -> None:
    refused(command.diffuse(override, "output.dir=out", cwd=tmp_path), said, tmp_path / "out")
