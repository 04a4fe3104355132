"""The LoRA files of a configuration: how they are written, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.lora import LORA_LIST, LoraSetting, read_lora
from diffuse.config.quoting import quote_overrides, unquote_overrides
from diffuse.errors import ConfigError
from diffuse.sweep.job_folder import job_identity, json_digest


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a.safetensors", [("a.safetensors", 1.0)]),
        ("a.safetensors,b.safetensors", None),
        ("a b (1), c.safetensors:0.8", [("a b (1), c.safetensors", 0.8)]),
        ("a b (1).safetensors:-0.8", [("a b (1).safetensors", -0.8)]),
        ("~/a.safetensors:1e-1", [("~/a.safetensors", 0.1)]),
        ("C:\\loras\\a.safetensors", [("C:\\loras\\a.safetensors", 1.0)]),
        ("[a:0.5, b]", [("a", 0.5), ("b", 1.0)]),
        ("[{source: /x/A.st, weight: 0.8}]", [("/x/A.st", 0.8)]),
        ('"a"', [("a", 1.0)]),
        ("{source: a}", [("a", 1.0)]),
        ("null", []),
    ],
)
def test_files_are_written_short_or_by_fields(typed: str, expected: list[tuple[str, float]] | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="several values"):
            compose_config([f"lora={typed}"])
        return
    value = resolve_config(compose_config(["prompt=x", f"lora={typed}"])).lora
    assert [(each.source, each.weight) for each in read_lora(value)] == expected
    assert read_lora(LORA_LIST.values(value)) == read_lora(value)
    (short,) = unquote_overrides(quote_overrides([f"lora={typed}"]))
    assert short == f"lora={LORA_LIST.short(value)}"
    assert LORA_LIST.short(value) == LORA_LIST.short(LORA_LIST.values(value))


def test_each_field_can_be_set(capsys: Any) -> None:
    value = compose_config(["lora=[a,b:0.5]", "lora.1.unet=0", "lora.0.weight=2"]).lora
    first, second = read_lora(OmegaConf.to_container(value))
    assert first == LoraSetting("a", 2.0)
    assert (second.strength("unet", "conv_in"), second.strength("text_encoder", "x")) == (0.0, 0.5)
    value = compose_config(["lora=[{source: a, blocks: {down_blocks.1: 0.5}}]"]).lora
    (blocks,) = read_lora(OmegaConf.to_container(value))
    assert blocks.blocks == {"down_blocks.1": 0.5}
    assert read_lora([{"source": "a", "blocks": {"down_blocks": {1: 0.5}}}]) == (blocks,)
    assert [blocks.strength("unet", name) for name in ("down_blocks.1.x", "down_blocks.10.x")] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["lora=[{surce: a}]"], "lora.0.surce: there is no such field"),
        (["lora=[{weight: 1}]"], "lora.0.source: should be a file"),
        (["lora=[{source: a, weight: heavy}]"], "lora.0.weight=heavy: should be a number"),
        (["lora=a:1e39"], "lora.0.weight=1e+39: should be from -10000 to 10000"),
        (["lora=[{source: a, blocks: {mid_block: 1e300}}]"], "should be from -10000 to 10000"),
        (["lora=[{source: a, blocks: 3}]"], "lora.0.blocks=3: should be parts of the model"),
        (["lora=[3]"], "lora.0=3: should be FILE, FILE:WEIGHT"),
        (["lora=[a (1)]"], "lora=[a (1)]: cannot be read"),
        (["lora=a", "lora.0.wieght=1"], "lora.0.wieght=1: should be lora.0.FIELD"),
        (["lora=a", "lora.1.weight=1"], "lora has one file, which is lora.0"),
        (
            ["lora=a", "lora.0.blocks.mid_block=0"],
            "has no such part yet; name it with the file, as in lora='[{source: FILE",
        ),
        (["lora.0.weight=1"], "there is no lora.0; say which file"),
    ],
)
def test_a_mistake_is_told_in_a_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides)
    assert said in str(caught.value)


def test_sweeps_go_through_files_and_weights() -> None:
    (line,) = quote_overrides(["lora=a.st:0.5,b c.st,null"], sweep=True)
    both = quote_overrides(["lora=a.st:0.5,b c.st,null"], sweep=True)
    assert both == [line]
    assert line.count("{source:") == 2
    assert line.endswith(",null")
    folded = quote_overrides(["lora=a,b,null", "lora.0.unet=0.5"], sweep=True)
    assert len(folded) == 1
    assert folded[0].count("unet:0.5") == 2
    kept = quote_overrides(["lora=a", "lora.0.weight=0,1"], sweep=True)
    assert kept[1] == "lora.0.weight=0,1"


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("choice(null,a:0.5)", "null,a:0.5"),
        ("choice( NULL , a:0.5 )", "null,a:0.5"),
        ("choice('null',a:0.5)", "null,a:0.5"),
        ("choice(null)", "null"),
        ("choice('a,null,b',null)", 'choice("a,null,b",null)'),
        ("choice([a:0.5,b],null)", "choice([a:0.5, b],null)"),
    ],
)
def test_a_choice_may_be_none(typed: str, same: str) -> None:
    quoted = quote_overrides([f"lora={typed}"], sweep=True)
    assert quoted == quote_overrides([f"lora={same}"], sweep=True)
    assert "a,null,b" not in typed or "a,null,b" in quoted[0]


def test_sweeps_without_keep_their_identity() -> None:
    plain = resolve_config(compose_config(["prompt=x"]))
    assert "lora" not in job_identity(plain)
    texts = ["lora=a:1", "lora=a", "lora=[{source: a, weight: 1}]"]
    made = {json_digest(job_identity(resolve_config(compose_config(["prompt=x", text])))) for text in texts}
    assert len(made) == 1
    assert json_digest(job_identity(plain)) not in made
