"""The embeddings of a configuration: how they are written, and what of it is refused."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.embedding import EMBEDDINGS_LIST, EmbeddingSetting
from diffuse.config.quoting import quote_overrides, unquote_overrides
from diffuse.errors import ConfigError
from diffuse.sweep.job_folder import job_identity, json_digest


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a b (1), c.pt", [("a b (1), c.pt", None)]),
        ("concepts/toy", [("concepts/toy", None)]),
        ("[a.pt, b.bin]", [("a.pt", None), ("b.bin", None)]),
        ('{source: a.pt, token: "<cat>"}', [("a.pt", "<cat>")]),
        (r'{source: a.pt, token: "\"\\"}', [("a.pt", '"\\')]),
        ("null", []),
    ],
)
def test_files_are_written_short_or_by_fields(typed: str, expected: list[tuple[str, str | None]]) -> None:
    value = resolve_config(compose_config(["prompt=x", f"embedding={typed}"])).embedding
    assert [(each.source, each.token) for each in EMBEDDINGS_LIST.read(value)] == expected
    (short,) = unquote_overrides(quote_overrides([f"embedding={typed}"]))
    assert short == f"embedding={EMBEDDINGS_LIST.short(value)}"
    assert unquote_overrides(quote_overrides([short])) == [short]


def test_each_field_can_be_set_as_it_is_typed() -> None:
    value = compose_config(["embedding=[a,b]", "embedding.1.token=<my cat>", "embedding.0.source=c, d.pt"]).embedding
    read = EMBEDDINGS_LIST.read(OmegaConf.to_container(value))
    assert read == (EmbeddingSetting("c, d.pt"), EmbeddingSetting("b", "<my cat>"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["embedding=[{surce: a}]"], "embedding.0.surce: there is no such field"),
        (["embedding=[{token: a}]"], "embedding.0.source: should be a file"),
        (["embedding=[{source: a, token: 3}]"], "embedding.0.token=3: should be a word"),
        (["embedding=[3]"], "embedding.0=3: should be FILE"),
        (["embedding=[a (1)]"], "embedding=[a (1)]: cannot be read"),
        (["embedding=a", "embedding.0.word=1"], "embedding.0.word=1: should be embedding.0.FIELD"),
        (["embedding=a", "embedding.1.token=1"], "embedding has one file, which is embedding.0"),
        (["embedding.0.token=1"], "there is no embedding.0; say which file, as in embedding=FILE"),
    ],
)
def test_a_mistake_is_told_in_a_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides)
    assert said in str(caught.value)


def test_sweeps_go_through_files_and_keep_their_identity() -> None:
    (line,) = quote_overrides(["embedding=a.pt,b c.pt,null"], sweep=True)
    assert (line.count("{source:"), line.endswith(",null")) == (2, True)
    plain = resolve_config(compose_config(["prompt=x"]))
    assert "embedding" not in job_identity(plain)
    texts = ["embedding=a", "embedding=[{source: a}]"]
    made = {json_digest(job_identity(resolve_config(compose_config(["prompt=x", text])))) for text in texts}
    assert len(made) == 1
    assert json_digest(job_identity(plain)) not in made
