"""Lists of texts in a sweep: each text arrives as typed, whatever marks it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import diffuse, smoke
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError
from diffuse.media.load import read_record


def texts_of(value: str, key: str = "prompt") -> list[str]:
    """The texts that a sweep makes of a value: several, or the one."""
    (quoted,) = quote_overrides([f"{key}={value}"], sweep=True)
    parsed = OverridesParser.create().parse_override(quoted)
    values = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]
    return [str(getattr(text, "text", text)) for text in values]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ('"a cat, small","a dog"', ["a cat, small", "a dog"]),
        ("'a cat, small' , 'a dog'", ["a cat, small", "a dog"]),
        ('"a cat\'s tail",\'a "red" dog\'', ["a cat's tail", 'a "red" dog']),
        ("'a cat's tail','a dog'", ["a cat's tail", "a dog"]),
        (r'"say \"hi\", you","b"', ['say "hi", you', "b"]),
        ('"[a], {b}","(a:1.2), b"', ["[a], {b}", "(a:1.2), b"]),
        ('"a = b","50% off","1984"', ["a = b", "50% off", "1984"]),
        ('"ein Kätzchen, süß","猫, 🐱"', ["ein Kätzchen, süß", "猫, 🐱"]),
        ("choice(it's raining, a dog)", ["it's raining", "a dog"]),
        ('choice("a cat, small", a dog!)', ["a cat, small", "a dog!"]),
        ('choice(a "red" cat, a dog)', ['a "red" cat', "a dog"]),
        ("choice(a (cat:1.2, big), [dog])", ["a (cat:1.2, big)", "[dog]"]),
        ("choice(a=b, 50%, ü 猫)", ["a=b", "50%", "ü 猫"]),
        ("choice(a :), b)", ["a :)", "b"]),
    ],
)
def test_each_text_arrives_as_typed(value: str, texts: list[str]) -> None:
    assert texts_of(value) == texts
    assert texts_of(value, "negative_prompt") == texts


@pytest.mark.parametrize("value", ['"a cat, small"', '"Yes", "No" he said', '"No", he said, "never"', "'tis, 'twas"])
def test_one_text_stays_one_with_its_quotes(value: str) -> None:
    assert texts_of(value) == [value]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"a","b",', "nothing follows the last comma"),
        ("choice(it's,b,)", "nothing follows the last comma"),
        ("choice(it's,,b)", "a text is empty"),
        ('choice(a "red, big" cat!, b)', "a quote is not closed"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        texts_of(value)


def test_a_list_in_quotes_is_the_same_sweep_as_a_choice() -> None:
    lists = ('"a cat, small","a dog"', 'choice("a cat, small","a dog")')
    quoted = [quote_overrides([f"prompt={value}"], sweep=True)[0] for value in lists]
    parsed = [list(OverridesParser.create().parse_override(line).sweep_string_iterator()) for line in quoted]
    assert parsed[0] == parsed[1]


def test_without_a_sweep_quotes_belong_to_the_text() -> None:
    (quoted,) = quote_overrides(['prompt="a","b"'])
    assert OverridesParser.create().parse_override(quoted).value() == '"a","b"'


def test_the_command_makes_two_pictures(tmp_path: Path) -> None:
    done = smoke("-m", "report.make=false", "output.dir=out", 'prompt="a cat, small","a dog"', cwd=tmp_path)
    made = [read_record(tmp_path / path)["request"]["prompt"] for path in done.paths]
    assert made == ["a cat, small", "a dog"]


@pytest.mark.parametrize("value", ["0-3", "10-12"])
def test_a_range_with_a_dash_names_the_range(value: str, tmp_path: Path) -> None:
    done = diffuse("-m", f"seed={value}", "num_inference_steps=1,2", cwd=tmp_path)
    first, last = map(int, value.split("-"))
    assert done.status == 2 and f"range({first},{last + 1})" in done.err, done.err
