"""Fields that go together in a sweep, beside those that are crossed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import diffuse
from hydra.core.override_parser.overrides_parser import OverridesParser
from own_experiments import own_conf, sweep_yaml
from PIL import Image
from sweeps import QUICK, swept

from diffuse.cli.dry_run import look_up_jobs
from diffuse.config.groups import composing
from diffuse.config.quoting import quote_overrides, quote_value
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.sweep.folder import Sweep
from diffuse.sweep.plan import plan_sweep
from diffuse.sweep.sweeper import combine, identity_values, read_zip

TEXTS = [
    *(
        "1e3",
        "null",
        "true",
        "2.50",
        "${seed}",
        r"a \${seed} \\",
        "???",
        "it's",
        'a "b"',
        "über",
        "猫",
        "a\nb",
        " a ",
        "",
    ),
    *("a, b", "(x:1.2) [y] {z}", "a=b; c", r"\(", "choice(a,b)", "range(1,3)", "1_000", "nan", "12", "$", "~x", "-0"),
]

ZIP = "hydra.sweeper.zip"


def plan(*overrides: str) -> Sweep:
    return plan_sweep(quote_overrides(overrides, sweep=True), overrides)[0]


def jobs(*overrides: str, zipped: Any = ()) -> list[str]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [" ".join(job) for job in combine(parsed, zipped)]


def test_values_are_crossed_or_go_together() -> None:
    crossed = jobs("a=1,2", "b=x,y", "c=0")
    assert crossed == ["a=1 b=x c=0", "a=1 b=y c=0", "a=2 b=x c=0", "a=2 b=y c=0"]
    assert jobs("a=1,2", "b=x,y", "c=0", zipped=[("a", "b")]) == ["a=1 b=x c=0", "a=2 b=y c=0"]
    apart = jobs("a=1,2", "c=5,6", "b=x,y", zipped=[("b", "a")])
    assert apart == ["a=1 c=5 b=x", "a=1 c=6 b=x", "a=2 c=5 b=y", "a=2 c=6 b=y"]
    two = jobs("a=1,2", "b=x,y", "c=range(0,3)", "d=choice(p,q,r)", zipped=[("a", "b"), ("c", "d")])
    assert len(two) == 6 and two[:2] == ["a=1 b=x c=0 d=p", "a=1 b=x c=1 d=q"]
    assert jobs("a=1,2", "a=3") == ["a=3"]


def drafted(*overrides: str, fields: Sequence[str] = ("prompt",)) -> list[tuple[Any, ...]]:
    """These fields of each job that a sweep lists."""
    given = [*QUICK, "num_inference_steps=2", "seed=7", *overrides]
    with composing:
        lister, _ = look_up_jobs(["--multirun"], quote_overrides(given, sweep=True), given, True)
    assert not any(job.error for job in lister.jobs), [job.error for job in lister.jobs]
    configs = [lister.job_request(job)[0] for job in lister.jobs]
    return [tuple(cfg[field] for field in fields) for cfg in configs]


def test_a_quoted_text_reaches_its_job_as_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = ",".join(map(quote_value, TEXTS))
    pair = ("prompt", "negative_prompt")
    made = drafted(f"prompt={listed}", f"negative_prompt=choice({listed})", f"{ZIP}=[{','.join(pair)}]", fields=pair)
    assert made == [(text, text) for text in TEXTS]


def test_a_text_of_an_experiment_reaches_its_job_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    texts = [text for text in TEXTS if "${" not in text and text != "???"]  # which YAML's values look up
    own_conf(tmp_path, monkeypatch, many=sweep_yaml(f"prompt: {json.dumps(texts)}"))
    assert drafted("experiment=many") == [(text,) for text in texts]


def test_a_file_of_any_name_reaches_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(["Jo's.tif", "über.tif", 'a;"b".tif', "null", "1e3", "猫, (2).tif"])
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="TIFF")
    assert drafted("input_image=glob(*)", fields=("input_image",)) == [(name,) for name in names]


def test_a_sweep_keeps_its_identity_where_its_texts_were_drawn() -> None:
    def values(line: str) -> list[str]:
        return identity_values(OverridesParser.create().parse_override(line))

    assert values('prompt=choice("a cat","12","a, b",False)') == [r"a\ cat", "12", r"a\,\ b", "False"]
    assert values('prompt=choice("null","1e3",1e3)') == ['"null"', '"1e3"', "1000.0"]


def test_pictures_of_fields_that_go_together(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog, small\n")
    given = ("prompt_file=prompts.txt", "seed=5,6", "num_inference_steps=1", f"{ZIP}=[prompt_file,seed]")
    done = swept(*given, cwd=tmp_path)
    made = [read_record(tmp_path / path)["request"] for path in done.paths]
    assert [(request["prompt"], request["seed"]) for request in made] == [("a cat", 5), ("a dog, small", 6)]
    again = swept(*given, cwd=tmp_path)
    assert again.paths == done.paths and "2 were there" in again.err


def test_groups_go_together_with_values(tmp_path: Path) -> None:
    given = ("scheduler=ddim,euler", "num_inference_steps=1,2", "seed=0", f"{ZIP}=[scheduler,num_inference_steps]")
    made = [read_record(tmp_path / path) for path in swept(*given, cwd=tmp_path).paths]
    assert [(each["config"]["scheduler"]["name"], each["request"]["num_inference_steps"]) for each in made] == [
        ("ddim", 1),
        ("euler", 2),
    ]


def test_only_where_it_is_used_it_belongs_to_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    crossed = plan("seed=1,2", "width=64,72")
    assert crossed.identity == plan("seed=1,2", "width=64,72", "hydra/sweeper=basic").identity
    assert crossed.identity == plan("seed=1,2", "width=64,72", f"{ZIP}=null").identity
    zipped = plan("seed=1,2", "width=64,72", f"{ZIP}=[seed,width]")
    assert (crossed.jobs, zipped.jobs, zipped.name) == (4, 2, "seed + width")
    assert plan("width=72,64", "seed=2,1", f"{ZIP}=[width,seed]").identity == zipped.identity
    other = plan("seed=2,1", "width=64,72", f"{ZIP}=[seed,width]")
    assert len({crossed.identity, zipped.identity, other.identity}) == 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("seed=1,2,3", "width=64,72", f"{ZIP}=[seed,width]"), "seed has 3, width has 2 values"),
        (("seed=range(0,3)", "scheduler=glob(d*)", f"{ZIP}=[seed,scheduler]"), "seed has 3, scheduler has"),
        (("seed=1,2", "width=64", f"{ZIP}=[seed,width]"), "width is not swept"),
        (("seed=1,2", f"{ZIP}=[seed,sed]"), "sed is not swept"),
        (("seed=1,2", "width=64,72", f"{ZIP}=[[seed,width],[width,seed]]"), "is named twice"),
        (("seed=1,2", f"{ZIP}=[seed]"), "two fields or more"),
        (("seed=1,2", f"{ZIP}=seed"), "two fields or more"),
    ],
)
def test_what_cannot_go_together_is_one_line(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = diffuse("-m", *overrides, "tracking=none", cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert said in done.err and ZIP in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("seed=1,2", f"{ZIP}=[seed,prompt_file]"), "prompt_file is not swept"),
        (("seed=1,2,3", "prompt_file=two.txt", f"{ZIP}=[seed,prompt_file]"), "seed has 3, prompt_file has 2 values"),
        (("seed=1,2,3", "prompt_file=two.txt", f"{ZIP}=[prompt,seed]"), "prompt_file has 2, seed has 3 values"),
        (("seed=1,2,3", 'prompt="a","b"', f"{ZIP}=[prompt,seed]"), "prompt has 2, seed has 3 values"),
        (("prompt_file=two.txt", f"{ZIP}=[prompt_file,prompt]"), "prompt and prompt_file are one field"),
        (("prompt_file=two.txt", f"{ZIP}=[prompt_file,prompt_file]"), "prompt_file is named twice"),
        (("+hydra.sweeper.params.seed=1,2",), "write seed=1,2, without hydra.sweeper.params"),
        (("++hydra.sweeper.params.width=64,128",), "write width=64,128, without hydra.sweeper.params"),
    ],
)
def test_a_field_is_named_as_it_was_typed(
    overrides: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError) as caught:
        plan(*overrides)
    assert said in str(caught.value)


def test_groups_of_fields() -> None:
    assert read_zip(None) == read_zip([]) == []
    assert read_zip(["seed", "prompt_file"]) == [("seed", "prompt")]
    with pytest.raises(ConfigError, match="two fields"):
        read_zip([["a", "b"], ["c"]])


def test_an_experiment_says_what_goes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ("experiment=scheduler_shootout", "scheduler=ddim,euler,heun")
    assert plan(*shared).jobs == 9
    assert plan(*shared, f"{ZIP}=[scheduler,num_inference_steps]").jobs == 3
