"""The record of a run: what stands in it, that it is true, and that it makes the same picture again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import SMOKE, smoke
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

import diffuse
from diffuse.config import compose as configuration
from diffuse.config import request as validation
from diffuse.media import files as media
from diffuse.media.pixels import pixels_sha256
from diffuse.record import record
from diffuse.run import run
from diffuse.schema import COMPONENTS, GenerationRequest

PACKAGE = Path(diffuse.__file__).resolve().parent
OVERRIDES = ("prompt=a pear, (green)", "num_images=2", "seed=40", "output.dir=out")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures of one run."""
    folder = tmp_path_factory.mktemp("pictures")
    return [folder / path for path in smoke(*OVERRIDES, cwd=folder).paths]


@pytest.fixture
def made(pictures: list[Path]) -> dict[str, Any]:
    """The record inside the second of them, as Pillow finds it."""
    with Image.open(pictures[1]) as picture:
        found: dict[str, Any] = json.loads(picture.info["diffuse"])
    return found


def test_the_parts_stand_in_a_fixed_order(made: dict[str, Any]) -> None:
    parts = ["diffuse", "created", "config", "overrides", "request", "weights", "hardware", "determinism"]
    assert [part for part in made if part != "inputs"] == [*parts, "versions", "git", "timings", "image"]


def test_the_digest_is_that_of_the_pixels_in_the_file(pictures: list[Path]) -> None:
    digests = []
    for index, path in enumerate(pictures):
        pixels = np.asarray(Image.open(path))
        image = media.read_record(path)["image"]
        digests.append(hashlib.sha256(b"64x64x3\0" + pixels.tobytes()).hexdigest())
        assert image == {"index": index, "seed": 40 + index, "pixels_sha256": digests[-1]}
    assert len(set(digests)) == 2


def test_digests_differ_in_shape_as_in_pixels() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    others = [image.reshape(2, 8, 3), image.reshape(8, 2, 3), image[::-1], image ^ 1]
    assert len({pixels_sha256(other) for other in [image, *others]}) == 5
    assert pixels_sha256(image[::-1][::-1]) == pixels_sha256(image)


def test_the_request_and_the_overrides(made: dict[str, Any]) -> None:
    expected = {"prompt": "a pear, (green)", "negative_prompt": "", "seed": 40, "num_images": 2}
    expected |= {"width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 3.0}
    assert {key: made["request"][key] for key in expected} == expected
    assert {key: made["config"][key] for key in expected} == expected
    assert made["overrides"][-4:] == list(OVERRIDES) and made["overrides"][: len(SMOKE)] == list(SMOKE)
    created = datetime.fromisoformat(made["created"])
    assert timedelta(0) <= datetime.now(UTC) - created < timedelta(hours=1)


def test_the_configuration_is_whole_and_resolved(made: dict[str, Any]) -> None:
    composed = OmegaConf.to_container(configuration.compose(SMOKE))
    assert isinstance(composed, dict)
    for group in ("model", "refiner"):  # a component that is the checkpoint's own is not said
        assert {source for name in COMPONENTS for source in composed[group].pop(name).values()} == {None}

    def compare(ours: Any, theirs: Any) -> None:
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            if isinstance(value, dict) and value:
                compare(ours[key], value)

    compare(made["config"], composed)
    assert "${" not in json.dumps(made["config"]) and "???" not in json.dumps(made["config"])
    assert made["config"]["hardware"]["device"] == "cpu"


def test_the_weights(made: dict[str, Any]) -> None:
    """The digest of the digests of the files, each with its name."""
    folder = Path(made["weights"]["source"])
    assert folder == PACKAGE / "tiny" / "checkpoint"
    files = sorted(folder.glob("*/*.safetensors"))
    assert len(files) == 3
    lines = sorted(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    )
    assert made["weights"]["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert made["weights"]["revision"] is None and made["weights"]["variant"] is None


def test_the_versions_of_everything_that_is_needed(made: dict[str, Any]) -> None:
    versions = made["versions"]
    assert versions["python"] == sys.version.split()[0]
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        for requirement in tomllib.loads(project.read_text())["project"]["dependencies"]:
            name = re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")
            assert versions[name] == importlib.metadata.version(name), name
    # What those need in their turn; and nothing that only the tests need.
    assert {"antlr4-python3-runtime", "sqlalchemy", "markupsafe"} <= set(versions)
    assert not {"pytest", "ruff", "diffusers", "hypothesis", "diffuse"} & set(versions)
    assert made["diffuse"] == diffuse.__version__


def test_the_hardware_and_the_determinism_settings(made: dict[str, Any]) -> None:
    assert made["hardware"]["device"] == "cpu"
    assert made["hardware"]["dtypes"] == dict.fromkeys(("text_encoder", "unet", "vae"), "float32")
    assert made["hardware"]["memory_profile"]["name"] == "cpu_only"
    assert made["determinism"]["threads"] == 1
    assert made["determinism"]["deterministic_algorithms"] is False
    names = {"cudnn_deterministic", "cudnn_benchmark", "cudnn_allow_tf32", "matmul_allow_tf32", "environment"}
    assert names <= set(made["determinism"])


def test_strict_determinism_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    try:
        (path,) = smoke("hardware.deterministic=strict", "output.dir=out", cwd=tmp_path).paths
        found = media.read_record(tmp_path / path)
        assert found["determinism"]["deterministic_algorithms"] is True
        assert found["determinism"]["environment"]["MKL_NUM_THREADS"] == "1"
        assert found["config"]["hardware"]["deterministic"] == "strict"
    finally:
        smoke("output.dir=out", cwd=tmp_path)  # which is relaxed again
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_drawn_seed_is_recorded_everywhere(tmp_path: Path) -> None:
    done = smoke("seed=null", "output.dir=out", cwd=tmp_path)
    found = media.read_record(tmp_path / done.paths[0])
    seed = found["request"]["seed"]
    assert 0 <= seed < 2**32
    assert found["config"]["seed"] == found["image"]["seed"] == seed
    assert done.paths[0].stem.endswith(f"_{seed}") and f"seed {seed}," in done.err
    again = media.read_record(tmp_path / smoke("seed=null", "output.dir=out", cwd=tmp_path).paths[0])
    assert again["request"]["seed"] != seed


def test_the_configuration_in_a_picture_makes_its_pixels_again(pictures: list[Path], tmp_path: Path) -> None:
    recorded = media.read_record(pictures[0])
    cfg = OmegaConf.merge(configuration.compose(), OmegaConf.create(recorded["config"]))
    (generation,) = run.generate(cfg, validation.drafts(cfg))
    for image, path in zip(generation.frames[:, 0], pictures, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


SECRETS = {
    "tracking.uri=https://me:hunter2@example.org/x": "hunter2",
    "tracking.uri=http://hunter2@example.org": "hunter2",
    "model.source=https://example.org/x?token=hunter2&a=b": "hunter2",
    "model.source=https://example.org/x?a=b&X-Amz-Signature=hunter2": "hunter2",
    "output.name=hf_abcdefghijklmnopqrstuvwx": "abcdefghijklmnopqrstuvwx",
    "+hydra.api_key=hunter2": "hunter2",
    "tracking.password=hunter2": "hunter2",
}


@pytest.mark.parametrize("override", SECRETS)
def test_secrets_are_taken_out(override: str) -> None:
    key, _, value = override.lstrip("+").partition("=")
    config = OmegaConf.create({})
    OmegaConf.update(config, key, value)
    request = GenerationRequest("a prompt", "", 1, 1, 8, 8, 1, 1.0)
    made = record.of_run(config, [override], request, weights={"source": value if "source" in key else ""}, hardware={})
    assert SECRETS[override] not in record.text(made)
    assert "***" in made["overrides"][0]


def test_prompts_are_kept_to_the_letter() -> None:
    text = "https://me:you@example.org hf_abcdefghijklmnopqrstuvwx Bearer abcdefgh12345 ?token=x"
    request = GenerationRequest(text, text, 1, 1, 8, 8, 1, 1.0)
    config = {"prompt": text, "negative_prompt": text}
    made = record.of_run(config, [f"prompt={text}", f"negative_prompt={text}"], request, weights={}, hardware={})
    assert made["request"]["prompt"] == made["config"]["prompt"] == made["config"]["negative_prompt"] == text
    assert made["overrides"] == [f"prompt={text}", f"negative_prompt={text}"]


class Colour(Enum):
    red = 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=4)
    | st.sampled_from([Colour.red, Path("a/b"), np.float32(0.5), np.int64(3), torch.tensor(2.0), torch.float16]),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
@example([math.nan, math.inf, {1: {2: {None: Colour.red}}}])
def test_any_value_becomes_what_json_holds(value: Any) -> None:
    plain = record.plain(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert record.plain(plain) == plain
    if isinstance(value, bool | int | str) or value is None:
        assert plain is value


def test_values_keep_what_they_say() -> None:
    assert record.plain({"a": Colour.red, "b": (1, Path("x/y")), "c": np.float64(0.25), "d": {3, 1, 2}}) == {
        "a": "red",
        "b": [1, "x/y"],
        "c": 0.25,
        "d": [1, 2, 3],
    }
    assert record.flat({"a": {"b": 1, "c": {"d": [2, 3]}, "e": {}}, "f": None}) == {
        "a.b": 1,
        "a.c.d": [2, 3],
        "f": None,
    }


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, Callable[..., Any]]:
    """A checkout of the package in a repository of its own, and `git` in it."""
    root = tmp_path / "checkout"
    shutil.copytree(PACKAGE, root / "diffuse", ignore=shutil.ignore_patterns("checkpoint", "__pycache__", "conf"))
    shutil.copytree(configuration.conf_dir(), root / "conf")

    def git(*arguments: str) -> str:
        named = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(root), *named, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (root / ".gitignore").write_text("__pycache__\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    return root, git


def known_to(root: Path, **env: str) -> Any:
    """What a process that runs the code in `root` says of its commit."""
    code = "import json, diffuse.record.record as r; print(json.dumps([r.__file__, r.git()]))"
    env = {**os.environ, "PYTHONPATH": str(root), **env}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    file, found = json.loads(done.stdout)
    assert Path(file).is_relative_to(root)
    return found


def test_the_commit_and_whether_the_code_is_as_committed(checkout: tuple[Path, Callable[..., Any]]) -> None:
    root, git = checkout
    commit = git("rev-parse", "HEAD")
    (root / "notes.txt").write_text("decides no picture")
    assert known_to(root, GIT_DIR="/nowhere") == {"commit": commit, "clean": True}
    with (root / "conf" / "config.yaml").open("a") as file:
        file.write("\n# changed\n")
    assert known_to(root) == {"commit": commit, "clean": False}


def test_a_folder_that_is_no_checkout_has_no_commit(checkout: tuple[Path, Callable[..., Any]], tmp_path: Path) -> None:
    """A repository around it, as around a virtual environment, is another's."""
    root, _ = checkout
    (root / "site").mkdir()
    shutil.move(root / "diffuse", root / "site" / "diffuse")
    assert known_to(root / "site") is None
    shutil.rmtree(root / ".git")
    shutil.move(root / "site" / "diffuse", root / "diffuse")
    assert known_to(root) is None
