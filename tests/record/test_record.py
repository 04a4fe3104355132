"""The record of a run: what stands in it, that it is true, and that it makes the same picture again."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from command import SMOKE, smoke
from omegaconf import OmegaConf
from PIL import Image

import diffuse
from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.media.load import read_record
from diffuse.run import run
from diffuse.schema import COMPONENTS

PACKAGE = Path(diffuse.__file__).resolve().parent


OVERRIDES = ("prompt=a pear, (green)", "num_images=2", "seed=40", "output.dir=out")


def test_the_parts_stand_in_a_fixed_order(made: dict[str, Any]) -> None:
    parts = ["diffuse", "created", "config", "overrides", "request", "weights", "hardware", "determinism"]
    assert [part for part in made if part != "inputs"] == [*parts, "versions", "git", "timings", "image"]


def test_the_digest_is_that_of_the_pixels_in_the_file(pictures: list[Path]) -> None:
    digests = []
    for index, path in enumerate(pictures):
        pixels = np.asarray(Image.open(path))
        image = read_record(path)["image"]
        digests.append(hashlib.sha256(b"64x64x3\0" + pixels.tobytes()).hexdigest())
        assert image == {"index": index, "seed": 40 + index, "pixels_sha256": digests[-1]}
    assert len(set(digests)) == 2


def test_the_request_and_the_overrides(made: dict[str, Any]) -> None:
    expected = {"prompt": "a pear, (green)", "negative_prompt": "", "seed": 40, "num_images": 2}
    expected |= {"width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 3.0}
    assert {key: made["request"][key] for key in expected} == expected
    assert {key: made["config"][key] for key in expected} == expected
    assert made["overrides"][-4:] == list(OVERRIDES) and made["overrides"][: len(SMOKE)] == list(SMOKE)
    created = datetime.fromisoformat(made["created"])
    assert timedelta(0) <= datetime.now(UTC) - created < timedelta(hours=1)


def test_the_configuration_is_whole_and_resolved(made: dict[str, Any]) -> None:
    composed = OmegaConf.to_container(compose_config(SMOKE))
    assert isinstance(composed, dict)
    for group in ("model", "refiner"):  # a component that is the checkpoint's own is not said
        assert {source for name in COMPONENTS for source in composed[group].pop(name).values()} == {None}
    assert composed.pop("text_backend")["name"] == "auto"  # nor is a text encoder that is

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


def test_a_drawn_seed_is_recorded_everywhere(tmp_path: Path) -> None:
    done = smoke("seed=null", "output.dir=out", cwd=tmp_path)
    found = read_record(tmp_path / done.paths[0])
    seed = found["request"]["seed"]
    assert 0 <= seed < 2**32
    assert found["config"]["seed"] == found["image"]["seed"] == seed
    assert done.paths[0].stem.endswith(f"_{seed}") and f"seed {seed}," in done.err
    again = read_record(tmp_path / smoke("seed=null", "output.dir=out", cwd=tmp_path).paths[0])
    assert again["request"]["seed"] != seed


def test_the_configuration_in_a_picture_makes_its_pixels_again(pictures: list[Path], tmp_path: Path) -> None:
    recorded = read_record(pictures[0])
    cfg = OmegaConf.merge(compose_config(), OmegaConf.create(recorded["config"]))
    (generation,) = run.generate(cfg, draft_requests(cfg))
    for image, path in zip(generation.frames[:, 0], pictures, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
