"""Overrides: texts taken to the letter, sweeps, files of prompts, and what is said of those that cannot be used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from command import SMOKE, diffuse, smoke
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffuse.config import compose as configuration
from diffuse.config import request as validation
from diffuse.errors import ConfigError
from diffuse.media.load import read_record

PACKAGE = Path(configuration.__file__).parents[1]

# What a command line can hold: no NUL; and pieces that mean something to Hydra, to OmegaConf or to YAML.
PIECES = [*",'\"\\[]{}()=$!;:#@~+%&|* \n\r\t\x1b\x85\u2028é🚀a1"]
PIECES += ["${", "${x}", "${oc.env:HOME}", "1e5", "null", "true", "???", "choice(a,b)", "--", "-m"]
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=60),
)
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
    cfg = configuration.compose(overrides)
    assert [cfg.prompt, cfg.negative_prompt, cfg.prompt_file, cfg.output.name] == texts
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    assert container["prompt"] == texts[0]
    assert configuration.typed(configuration.quote(overrides)) == overrides


@settings(max_examples=120, deadline=None)
@given(TEXT)
def test_hydra_reads_the_quoted_text_as_one_value(text: str) -> None:
    (quoted,) = configuration.quote([f"prompt={text}"])
    parsed = OverridesParser.create().parse_override(quoted)
    assert parsed.key_or_group == "prompt" and not parsed.is_sweep_override()
    assert configuration.typed([quoted]) == [f"prompt={text}"]


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_in_a_sweep_only_an_explicit_one_is_no_text(text: str) -> None:
    (quoted,) = configuration.quote([f"prompt={text}"], sweep=True)
    if not re.match(r"\s*(choice|range|interval|glob|shuffle|sort|tag)\s*\(", text):
        assert configuration.typed([quoted]) == [f"prompt={text}"]
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
    cfg = configuration.compose(["seed=5", "output.dir=a, (b)/${seed}", "model.source=/x y/[z]", "tracking.uri=null"])
    assert (cfg.output.dir, cfg.model.source, cfg.tracking.uri) == ("a, (b)/5", "/x y/[z]", None)


def test_numbers_stay_numbers_and_texts_texts() -> None:
    cfg = configuration.compose(["seed=7", "guidance_scale=2", "prompt=7", "output.name=1e5", "width=null"])
    assert (cfg.seed, cfg.guidance_scale, cfg.prompt, cfg.output.name, cfg.width) == (7, 2.0, "7", "1e5", None)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ('\n  one, (x:1) = "y"  \r\n\r\n${seed} 🚀\n', ['one, (x:1) = "y"', "${seed} 🚀"]),
        ("\ufeffwith a mark\n", ["with a mark"]),
        ("# not a comment\nnull\n???", ["# not a comment", "null", "???"]),
        ("line\u2028separator\x0bkept\n", ["line\u2028separator\x0bkept"]),
    ],
)
def test_a_file_of_prompts_has_one_a_line(content: str, prompts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts, (a) = [b].txt"
    path.write_text(content, encoding="utf-8", newline="")
    drafts = validation.drafts(configuration.compose([f"prompt_file={path}"]))
    assert [draft.prompt for draft in drafts] == prompts
    assert len({draft.seed for draft in drafts}) == len(drafts)  # drawn for each
    same = validation.drafts(configuration.compose([f"prompt_file={path}", "seed=3"]))
    assert {draft.seed for draft in same} == {3}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"caf\xe9\n", b"\xff\xfea\0"])
def test_files_without_prompts_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    for wrong in (path, tmp_path / "missing.txt", tmp_path):
        assert "prompt_file" in refused(f"prompt_file={wrong}")
    assert "both set" in refused(f"prompt_file={path}", "prompt=a")


def refused(*overrides: str) -> str:
    """The one line that says why."""
    with pytest.raises(ConfigError) as caught:
        validation.drafts(configuration.compose(overrides))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


NEAREST = {
    "promt=x": "prompt",
    "sed=3": "seed",
    "+sed=3": "seed",
    "num_image=2": "num_images",
    "steps=20": "num_inference_steps",
    "cfg_scale=7": "guidance_scale",
    "guidance=7": "guidance_scale",
    "wdith=64": "width",
    "models=tiny": "model",
    "model=tini": "tiny",
    "scheduler=dim": "ddim",
    "memory_profile=full": "full_gpu",
    "tracking=mlfow": "mlflow",
    "experiment=smok": "smoke",
    "format=png": "output.format",
    "name=x": "output.name",
    "output.forma=png": "output.format",
    "output.format=jpeg": "jpg",
    "scheduler.etta=1": "scheduler.eta",
    "eta=1": "scheduler.eta",
    "hardware.detreministic=strict": "hardware.deterministic",
}


@pytest.mark.parametrize("override", NEAREST)
def test_a_name_that_does_not_exist_suggests_the_nearest(override: str) -> None:
    said = refused(override)
    assert said.startswith((override, override.partition("=")[0]))
    assert f"did you mean {NEAREST[override]}?" in said


def test_a_name_like_no_other_suggests_nothing() -> None:
    assert "did you mean" not in refused("zzzzqqqq=1")
    assert "diffuse --help" in refused("zzzzqqqq=1")


WRONG = {
    "seed=abc": "whole number",
    "seed=1.5": "whole number",
    "seed=": "whole number",
    "seed=true": "whole number",
    "seed=1e3": "whole number",
    "seed=-1": "from 0",
    f"seed={2**63}": "from 0",
    "width=64.5": "whole number",
    "width=65": "64",
    "height=-8": "1 or more",
    "num_images=0": "1 or more",
    "num_images=null": "null",
    "num_inference_steps=0": "1 or more",
    "guidance_scale=high": "number",
    "guidance_scale=nan": "number",
    "guidance_scale=inf": "number",
    "guidance_scale=-1": "0 or more",
    "output.quality=0": "from 1 to 100",
    "output.quality=101": "from 1 to 100",
    "output.format=gif": "png, jpg, webp",
    "output.dir=null": "null",
    "output.dir=": "folder",
    "output=3": "output.dir",
    "hardware.device=tpu": "auto, cpu, cuda, mps",
    "hardware.dtype=half": "bfloat16",
    "hardware.deterministic=yes": "relaxed, strict",
    "memory_profile.guidance=both": "batched, sequential",
    "memory_profile.tiled_decode=maybe": "true or false",
    "memory_profile.on_device=unet": "list",
    "scheduler.eta=abc": "number",
    "scheduler.timestep_spacing=even": "leading",
    "seed=1,2": "diffuse -m",
    "seed=choice(1,2)": "diffuse -m",
    "+seed=3": "seed=3",
    "~seed": "seed=null",
    "prompt": "NAME=VALUE",
    "=3": "NAME=VALUE",
    "model=null": "NAME=VALUE",
    "model.source=": "model.source",
    "prompt=\udce9": "UTF-8",
    "negative_prompt=\udce9": "UTF-8",
    "+model.request_defaults.sed=1": "seed",
    "+model.min_vram_gib.balance=1": "balanced",
    "model._target_=os.system": "diffuse.pipelines",
    "scheduler._target_=builtins.eval": "diffuse.schedulers",
    "seed=${nothing}": "nothing",
    "width=${height}${seed}": "width",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_value_that_does_not_fit_is_refused_in_one_line(override: str) -> None:
    said = refused(override)
    assert WRONG[override] in said
    assert override.lstrip("+~").partition("=")[0] in said


KEYS = ["seed", "width", "guidance_scale", "model", "output.format", "scheduler", "output.dir", "x", "", "+seed"]


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(KEYS), value=TEXT)
def test_nothing_but_a_one_line_error_comes_of_any_override(key: str, value: str) -> None:
    try:
        validation.drafts(configuration.compose([f"{key}={value}"]))
    except ConfigError as error:
        assert str(error) and len(str(error).splitlines()) == 1


def test_the_commit_of_a_preset_is_that_of_its_own_source() -> None:
    pinned = configuration.compose(["model=sd21"]).model.revision
    assert re.fullmatch("[0-9a-f]{40}", pinned)
    assert configuration.load_group("model")["sd21"].revision == pinned
    assert configuration.compose(["model=sd21", "model.source=owner/name"]).model.revision is None
    given_ = configuration.compose(["model=sd21", "model.source=owner/name", f"model.revision={pinned}"])
    assert given_.model.revision == pinned
    assert configuration.compose(["model=sd21", "model.revision=main"]).model.revision == "main"


@pytest.mark.parametrize("packaged", [True, False])
def test_the_configuration_is_found_in_a_checkout_and_in_a_wheel(packaged: bool, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "diffuse", ignore=shutil.ignore_patterns("checkpoint", "__pycache__", "conf"))
    conf = tmp_path / ("diffuse/conf" if packaged else "conf")
    shutil.copytree(configuration.conf_dir(), conf)
    code = "from diffuse.config import compose as c; print(c.conf_dir()); print(c.compose().model.name)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(conf), "tiny"], done.stderr
