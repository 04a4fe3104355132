"""Overrides: texts are taken to the letter, and sweeps over them are explicit."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from command import SMOKE, diffuse, smoke
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odd_texts import TEXT
from omegaconf import OmegaConf

from diffuse.config.compose import compose_config
from diffuse.config.quoting import quote_overrides, unquote_overrides
from diffuse.config.text_lists import is_quoted_list
from diffuse.media.load import read_record

EXAMPLES = [
    "a cat, a dog",
    "say \"yes\", 'no'",
    "[1, 2] {a: b} (x:1.2)",
    "a=b=c",
    "${x} \\${x} ${ \\\\${",
    "🚀 👩‍🚀",
    "two\nlines\r\n",
    "  spaces  ",
    "",
    "null",
    "???",
    "\\",
    "\\\n",
    'ends with \\"',
    "1984",
    "choice(a, b)",
]


@settings(max_examples=15, deadline=None)
@given(st.lists(TEXT, min_size=4, max_size=4))
@example(EXAMPLES[0:4])
@example(EXAMPLES[4:8])
@example(EXAMPLES[8:12])
@example(EXAMPLES[12:16])
def test_texts_are_taken_to_the_letter(texts: list[str]) -> None:
    keys = ("prompt", "negative_prompt", "prompt_file", "output.name")
    overrides = [f"{key}={text}" for key, text in zip(keys, texts, strict=True)]
    cfg = compose_config(overrides)
    assert [cfg.prompt, cfg.negative_prompt, cfg.prompt_file, cfg.output.name] == texts
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    assert container["prompt"] == texts[0]
    assert unquote_overrides(quote_overrides(overrides)) == overrides


@settings(max_examples=120, deadline=None)
@given(TEXT)
def test_hydra_reads_the_quoted_text_as_one_value(text: str) -> None:
    (quoted,) = quote_overrides([f"prompt={text}"])
    parsed = OverridesParser.create().parse_override(quoted)
    assert parsed.key_or_group == "prompt" and not parsed.is_sweep_override()
    assert unquote_overrides([quoted]) == [f"prompt={text}"]


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_in_a_sweep_only_an_explicit_one_is_no_text(text: str) -> None:
    (quoted,) = quote_overrides([f"prompt={text}"], sweep=True)
    if not re.match(r"\s*(choice|range|interval|glob|shuffle|sort|tag)\s*\(", text) and not is_quoted_list(text):
        assert unquote_overrides([quoted]) == [f"prompt={text}"]
        assert not OverridesParser.create().parse_override(quoted).is_sweep_override()


@settings(max_examples=3, deadline=None)
@given(prompt=TEXT, negative=TEXT)
@example(prompt="two\nlines, ${seed} 'and' \"quotes\" ", negative="???")
@example(prompt="choice(a,b)", negative="null")
def test_texts_reach_the_picture_to_the_letter(prompt: str, negative: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = smoke(f"prompt={prompt}", f"negative_prompt={negative}", "output.dir=out", cwd=Path(folder))
        made = read_record(Path(folder) / done.out.rstrip("\n"))
    assert (made["request"]["prompt"], made["request"]["negative_prompt"]) == (prompt, negative)
    assert (made["config"]["prompt"], made["config"]["negative_prompt"]) == (prompt, negative)
    assert f"prompt={prompt}" in made["overrides"] and f"negative_prompt={negative}" in made["overrides"]


def swept(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """The records of a sweep's pictures, in order."""
    done = smoke("-m", "report.make=false", "output.dir=out", *overrides, cwd=folder)
    return [read_record(folder / path) for path in done.paths]


def test_a_sweep_over_prompts_is_asked_for_explicitly(tmp_path: Path) -> None:
    made = swept(tmp_path, "prompt=choice(a cat,'a dog, brown', \"${seed}\")", "negative_prompt=x, y")
    assert [record["request"]["prompt"] for record in made[:2]] == ["a cat", "a dog, brown"]
    assert {record["request"]["negative_prompt"] for record in made} == {"x, y"}
    assert made[1]["overrides"][-2:] == ["prompt=a dog, brown", "negative_prompt=x, y"]


def test_a_prompt_with_commas_is_one_prompt_in_a_sweep_too(tmp_path: Path) -> None:
    made = swept(tmp_path, "prompt=a cat, a dog (both)", "seed=range(1,3)")
    assert [(record["request"]["prompt"], record["request"]["seed"]) for record in made] == [
        ("a cat, a dog (both)", 1),
        ("a cat, a dog (both)", 2),
    ]


@pytest.mark.parametrize("prompt", ["range(of mountains)", "choice(", "choice(a", "glob(x)y", "sort()"])
def test_what_only_looks_like_a_sweep(prompt: str, tmp_path: Path) -> None:
    """A text that is no sweep is a prompt; a sweep that cannot be read is one line."""
    done = diffuse("-m", *SMOKE, "tracking=none", "output.dir=out", f"prompt={prompt}", cwd=tmp_path)
    if done.status == 0:
        (made,) = (read_record(tmp_path / path) for path in done.paths)
        assert made["request"]["prompt"] == prompt
    else:
        assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
        assert "prompt" in done.err


def test_paths_are_quoted_and_keep_interpolations() -> None:
    cfg = compose_config(["seed=5", "output.dir=a, (b)/${seed}", "model.source=/x y/[z]", "tracking.uri=null"])
    assert (cfg.output.dir, cfg.model.source, cfg.tracking.uri) == ("a, (b)/5", "/x y/[z]", None)


def test_numbers_stay_numbers_and_texts_texts() -> None:
    cfg = compose_config(["seed=7", "guidance_scale=2", "prompt=7", "output.name=1e5", "width=null"])
    assert (cfg.seed, cfg.guidance_scale, cfg.prompt, cfg.output.name, cfg.width) == (7, 2.0, "7", "1e5", None)
