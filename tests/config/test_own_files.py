"""Mistakes in the user's own YAML files: one line, with the file and the line of the mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import diffuse

from diffuse.config.compose import compose_config, own_configuration
from diffuse.config.groups import load_group
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError

MODEL = "defaults:\n  - tiny\n  - _self_\n"
EXPERIMENT = "# @package _global_\n"

# file -> its text, the line of the mistake (0: the whole file), and words of the message
MISTAKES: dict[str, tuple[str, str | bytes, int, str]] = {
    "syntax": ("model", MODEL + "source: a: b\n", 4, "mapping values are not allowed here"),
    "a brace left open": ("model", MODEL + "request_defaults: {a: 1\nb: 2\n", 5, "expected ',' or '}'"),
    "a quote left open": ("model", MODEL + 'source: "a\n', 5, "is no YAML"),
    "a tab": ("model", MODEL + "request_defaults:\n\twidth: 64\n", 5, "a tab stands where a space should"),
    "a name twice": ("model", MODEL + "source: a\nsource: b\n", 5, "source is set twice, first in line 4"),
    "twice, within": ("model", MODEL + "vae:\n  source: a\n  source: b\n", 6, "source is set twice, first in line 5"),
    "indentation": ("model", MODEL + "request_defaults:\n  width: 64\n height: 3\n", 6, "check the indentation"),
    "an alias of nothing": ("model", MODEL + "source: *x\n", 4, "undefined alias 'x'"),
    "an alias of itself": ("model", MODEL + "vae: &x\n  source: *x\n", 4, "holds itself"),
    "a tag": ("model", MODEL + "source: !!python/name:os.system x\n", 4, "could not determine a constructor"),
    "two documents": ("model", MODEL + "---\nsource: x\n", 4, "but found another document"),
    "a control character": ("model", MODEL + 'source: "\x07"\n', 0, "U+0007"),
    "a list": ("model", "- a\n- b\n", 1, "holds a list where NAME: VALUE lines should be"),
    "a text": ("model", "\n# mine\nhello\n", 3, "holds the text 'hello'"),
    "a list for a mapping": ("model", MODEL + "request_defaults: [1, 2]\n", 4, "should be NAME: VALUE lines"),
    "a text for a component": ("model", MODEL + "vae: some/where\n", 4, "model.vae: should be NAME: VALUE lines"),
    "a mapping for a list": ("memory_profile", "defaults: [balanced]\non_device: {a: b}\n", 2, "should be a list"),
    "a number for a group": ("experiment", EXPERIMENT + "model: 3\n", 2, "model: should be NAME: VALUE lines"),
    "an unknown field": ("model", MODEL + "sorce: x\n", 4, "did you mean model.source?"),
    "an unknown field, within": ("model", MODEL + "vae:\n  sorce: x\n", 5, "did you mean model.vae.source?"),
    "an unknown field of a request": ("experiment", EXPERIMENT + "seed: 3\npromt: x\n", 3, "did you mean prompt?"),
    "an unknown group": ("experiment", EXPERIMENT + "modle:\n  source: x\n", 2, "did you mean model?"),
    "an unknown default": ("model", MODEL + "request_defaults:\n  widht: 64\n", 5, "did you mean width?"),
    "a default that is no number": (
        "model",
        MODEL + "request_defaults:\n  num_inference_steps: six\n",
        5,
        "should be a whole number",
    ),
    "an unknown profile": ("model", MODEL + "min_vram_gib:\n  ful_gpu: 64\n", 5, "did you mean full_gpu?"),
    "an unknown one of Hydra's": ("experiment", EXPERIMENT + "hydra:\n  sweper:\n    x: 3\n", 3, "--cfg hydra"),
    "no number": ("model", MODEL + "size_multiple: abc\n", 4, "'abc' is not a whole number"),
    "null": ("model", MODEL + "size_multiple: null\n", 4, "cannot be null"),
    "a prompt that is a truth": (
        "experiment",
        EXPERIMENT + "prompt: no\n",
        2,
        "no is false to YAML; put the text in quotes",
    ),
    "a prompt that is a time": ("model", MODEL + "request_defaults:\n  prompt: 12:30\n", 5, "12:30 is 750 to YAML"),
    "a prompt of a sweep": (
        "experiment",
        EXPERIMENT + "hydra:\n  sweeper:\n    params:\n      prompt: [a, 1e3]\n",
        5,
        "1e3 is 1000.0 to YAML",
    ),
    "none of the choices": ("model", MODEL + "download: perhaps\n", 4, "none of ask, yes, never"),
    "a type in an experiment": ("experiment", EXPERIMENT + "\nseed: abc\n", 3, "seed: 'abc' is not a whole number"),
    "a list of seeds": ("experiment", EXPERIMENT + "seed: [1,2]\n", 2, "is not a whole number"),
    "a mode": ("experiment", EXPERIMENT + "hydra:\n  mode: MULTI\n", 3, "did you mean MULTIRUN?"),
    "a value out of range": ("experiment", EXPERIMENT + "width: 65\n", 2, "should be a multiple of 8"),
    "hardware": ("hardware", "defaults: [cpu]\nthreads: many\n", 2, "'many' is not a whole number"),
    "tracking": ("tracking", "defaults: [none]\nurl: x\n", 2, "did you mean tracking.uri?"),
    "another kind of tracking": ("tracking", "defaults: [none]\nname: x\n", 2, "should be mlflow or none"),
    "bytes of Latin-1": ("model", MODEL.encode() + b"# caf\xe9\n", 4, "not UTF-8 text"),
    "UTF-16": ("model", MODEL.encode("utf-16"), 1, "not UTF-8 text"),
    "a byte-order mark": ("experiment", "\ufeff" + EXPERIMENT + "seed: 3\n", 1, "byte-order mark"),
    "nothing": ("model", "", 0, "is empty"),
    "comments alone": ("model", "# later\n", 0, "is empty"),
    "no class": ("model", "source: x\n", 0, "begin the file with the defaults [OPTION, _self_]"),
    "another class": ("model", MODEL + "_target_: os.system\n", 4, "should be a class in diffuse.pipelines"),
    "no sampler": ("scheduler", "name: x\n", 0, "should be a class in diffuse.schedulers"),
    "a default that is not there": ("model", "defaults:\n  - tinny\n", 2, "did you mean tiny?"),
    "an option that is not there": ("experiment", EXPERIMENT + "defaults:\n  - override /model: x\n", 3, "model=x"),
    "a group that is not there": ("model", "defaults:\n  - tiny\n  - override /schduler: x\n", 3, "mean scheduler?"),
    "a group elsewhere": (
        "model",
        "defaults:\n  - tiny\n  - override /scheduler: x\n",
        3,
        "scheduler@_global_.scheduler: O",
    ),
    "no override": ("experiment", EXPERIMENT + "defaults:\n  - /model: sd21\n", 3, "write `override /model: OPTION`"),
    "no override nor slash": ("experiment", EXPERIMENT + "defaults:\n  - model: x\n", 3, "write `override /model: x`"),
    "no option": ("experiment", EXPERIMENT + "defaults:\n  - override /model: ???\n", 3, "model is not chosen"),
    "defaults that are no list": ("model", "defaults:\n  tiny: x\n", 1, "defaults should be a list"),
    "itself": ("experiment", EXPERIMENT + "defaults:\n  - mine\n", 0, "lead back to itself"),
    "_self_ twice": ("model", "defaults: [tiny, _self_, _self_]\n", 0, "Duplicate _self_"),
    "no package": ("experiment", "seed: 3\n", 1, "begin it with the line `# @package _global_`"),
    "a package too late": ("experiment", "# mine\n# @package _global_\nseed: 3\n", 2, "only in the first line"),
    "another package": ("experiment", "# @package global\nseed: 3\n", 1, "no field or group global"),
    "a package and a word": ("experiment", "# @package _global_ x\nseed: 3\n", 1, "and nothing more"),
    "a searchpath": ("experiment", EXPERIMENT + "hydra:\n  searchpath: [/]\n", 3, "only supported from the primary"),
    "an interpolation": ("model", MODEL + "source: ${nosuch}\n", 4, "${nosuch} is no field"),
    "half an interpolation": ("model", MODEL + "source: ${nosuch\n", 4, "cannot be read as ${FIELD}"),
    "no such variable": ("model", MODEL + "source: ${oc.env:NO_SUCH_ONE}\n", 4, "the environment has no NO_SUCH_ONE"),
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def refused(folder: Path, *overrides: str, name: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught, own_configuration(overrides, str(folder), name):
        draft_requests(compose_config(overrides))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(mistake: str, tmp_path: Path) -> None:
    group, text, line, words = MISTAKES[mistake]
    file = tmp_path / group / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused(tmp_path, f"{group}=mine", "prompt=x")
    assert said.startswith(f"{file}:{line}: " if line else f"{file}: "), said
    assert words in said


def test_an_override_goes_before_the_file_and_is_named_itself(tmp_path: Path) -> None:
    written(tmp_path, {"experiment/mine.yaml": EXPERIMENT + "width: 65\nseed: 3\n"})
    assert refused(tmp_path, "experiment=mine", "prompt=x", "width=66").startswith("width=66: ")
    assert refused(tmp_path, "experiment=mine", "prompt=x", "seed=abc").startswith("seed=abc: ")


def test_a_file_that_a_file_takes_in_is_named(tmp_path: Path) -> None:
    outer = EXPERIMENT + "defaults:\n  - base\n  - override /model: mine\n"
    base = EXPERIMENT + "seed: 3\n"
    written(tmp_path, {"experiment/outer.yaml": outer, "experiment/base.yaml": base, "model/mine.yaml": "a: b: c\n"})
    assert refused(tmp_path, "experiment=outer").startswith(f"{tmp_path}/model/mine.yaml:1: ")


def test_a_broken_file_that_is_not_chosen_costs_nothing(tmp_path: Path) -> None:
    written(tmp_path, {"model/broken.yaml": "a: b: c\n", "model/mine.yaml": MODEL})
    with own_configuration(["model=mine"], str(tmp_path)):
        assert compose_config(["model=mine"]).model.name == "tiny"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("model/tiny.yaml", ()), ("config.yaml", ()), ("experiment/smoke.yaml", ["experiment=smoke"])],
)
def test_a_file_that_would_not_be_read_is_refused(name: str, overrides: list[str], tmp_path: Path) -> None:
    written(tmp_path, {name: "seed: 3\n"})
    assert refused(tmp_path, *overrides).startswith(f"{tmp_path / name}: would not be read")


def test_a_file_that_would_not_be_read_costs_nothing_where_it_is_not_chosen(tmp_path: Path) -> None:
    written(tmp_path, {"scheduler/euler.yaml": "name: mine\n"})
    with own_configuration(["seed=1"], str(tmp_path)):
        assert compose_config(["seed=1"]).seed == 1
    written(tmp_path, {"model/mine.yaml": "defaults: [tiny, override /scheduler@_global_.scheduler: euler, _self_]\n"})
    for override in ("scheduler=euler", "scheduler=ddim,euler", "model=mine"):
        assert "scheduler/euler.yaml: would not be read" in refused(tmp_path, override)
    done = diffuse("--config-dir", tmp_path, "doctor", "tracking=none", cwd=tmp_path)
    assert done.status == 0 and "scheduler=euler" in done.out, done.err


def test_a_wrong_default_of_a_model_is_known_before_it_is_chosen(tmp_path: Path) -> None:
    written(tmp_path, {"model/mine.yaml": MODEL + "request_defaults:\n  num_inference_steps: six\n"})
    with own_configuration(["seed=1"], str(tmp_path)):
        mistake = load_group("model").mistakes["mine"]
    assert str(mistake).startswith(f"{tmp_path}/model/mine.yaml:5: num_inference_steps=six: should be")


def test_another_ending_is_pointed_out(tmp_path: Path) -> None:
    written(tmp_path, {"model/mine.yml": MODEL})
    assert f"rename {tmp_path}/model/mine.yml to mine.yaml" in refused(tmp_path, "model=mine")


def test_a_path_for_the_name_of_a_primary_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written(tmp_path, {"lamps/studio.yaml": "defaults:\n  - config\n"}))
    with (
        pytest.raises(ConfigError, match="write --config-dir lamps --config-name studio"),
        own_configuration([], None, "lamps/studio.yaml"),
    ):
        pass


PRIMARY = "defaults:\n  - config\n  - _self_\n"
PRIMARIES = {
    "without the package's": ("seed: 3\n", 1, "begin its defaults with `- config`"),
    "a wrong type": (PRIMARY + "seed: abc\n", 4, "is not a whole number"),
    "no such option": ("defaults:\n  - config\n  - override model: x\n  - _self_\n", 3, "model=x: there is no such"),
    "no override": ("defaults:\n  - config\n  - model: sd21\n  - _self_\n", 3, "write `override /model: OPTION`"),
    "a searchpath that is not there": (PRIMARY + "hydra:\n  searchpath: [nosuch]\n", 5, "no such folder"),
    "a searchpath that is no list": (PRIMARY + "hydra:\n  searchpath: x\n", 5, "should be a list"),
}


@pytest.mark.parametrize("mistake", PRIMARIES)
def test_mistakes_in_a_primary_configuration(mistake: str, tmp_path: Path) -> None:
    text, line, words = PRIMARIES[mistake]
    written(tmp_path, {"mine.yaml": text})
    said = refused(tmp_path, "prompt=x", name="mine")
    assert said.startswith(f"{tmp_path}/mine.yaml:{line}: ") and words in said, said


def test_the_command_prints_one_line(tmp_path: Path) -> None:
    """A syntax error was a traceback of 42 lines."""
    written(tmp_path, {"my/model/mine.yaml": "a: b: c\n", "my/scheduler/s.yaml": "defaults: [ddim]\netta: 1\n"})
    for arguments in (
        ["--cfg", "job", "hydra.searchpath=[my]"],
        ["-m", "seed=1,2", "--config-dir", "my"],
        ["--dry-run", "--config-dir=my"],
        ["-cd", "my", "doctor"],
        ["prompt=x", "hydra.searchpath=[my]"],
    ):
        done = diffuse(*arguments, "model=mine", cwd=tmp_path)
        assert (done.status, done.out) == (2, ""), done.err
        assert done.err.startswith(f"diffuse: {tmp_path}/my/model/mine.yaml:1: is no YAML: "), done.err
        assert len(done.err.splitlines()) == 1
    done = diffuse("--config-dir", "my", "scheduler=s", "prompt=x", "tracking=none", cwd=tmp_path)
    assert done.status == 2 and "my/scheduler/s.yaml:2: scheduler.etta: ddim has no such option" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["my"]
