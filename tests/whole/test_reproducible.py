"""The same seed gives the same pixels, by the command: again, elsewhere, alone or in a batch, under every profile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import diffuse, finished, start
from PIL import Image

from diffuse.config.groups import group_options
from diffuse.media.load import read_record
from diffuse.media.pixels import pixels_sha256

REQUEST = ("prompt=a cactus on a pink background", "num_inference_steps=2", "hardware=cpu", "hardware.threads=1")
STRICT = "hardware.deterministic=strict"
RELAXED = "hardware.deterministic=relaxed"
LEVELS = {STRICT: 0, RELAXED: 2}  # how far apart pixels may be, of 255
# `sharded` needs several cards, and `very_low` names components of films.
PROFILES = [name for name in group_options("memory_profile") if name not in ("auto", "sharded", "very_low")]

Make = Callable[..., list[np.ndarray]]


def pixels(path: Path) -> np.ndarray:
    """What is in the file, uint8 `[H, W, 3]`; its record must give the digest of just that."""
    with Image.open(path) as picture:
        found = np.asarray(picture.convert("RGB"))
    assert read_record(path)["image"]["pixels_sha256"] == pixels_sha256(found)
    return found


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The pictures that the command saves, in order. The pipeline is the one that is kept, unless it is made anew."""

    def run(*arguments: Any, anew: bool = False) -> list[np.ndarray]:
        if anew:
            forget_pipelines()
        done = diffuse(*REQUEST, "tracking=none", "output.dir=out", *arguments, cwd=tmp_path)
        assert done.status == 0, done.err
        return [pixels(tmp_path / path) for path in done.paths]

    return run


def forget_pipelines() -> None:
    from diffuse.run import open as opening

    opening._pipelines.clear()


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference anywhere, in levels of 255."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("precision", LEVELS)
def test_twice_in_a_process(precision: str, make: Make) -> None:
    (first,) = make(precision, "seed=7", anew=True)
    (again,) = make(precision, "seed=7")
    (other,) = make(precision, "seed=8")
    (anew,) = make(precision, "seed=7", anew=True)
    assert apart(first, again) == apart(first, anew) == 0  # the same work in the same order
    assert first.std() > 10 and apart(first, other) > 50


def test_in_two_processes(make: Make, tmp_path: Path) -> None:
    arguments = (*REQUEST, STRICT, "tracking=none", "seed=7", "num_images=2")
    processes = [start(*arguments, f"output.dir={name}", cwd=tmp_path) for name in ("one", "two")]
    elsewhere = []
    for process in processes:
        done = finished(process)
        assert done.status == 0, done.err
        elsewhere.append([pixels(tmp_path / path) for path in done.paths])
    here = make(STRICT, "seed=7", "num_images=2")
    for pictures in elsewhere:
        assert len(pictures) == 2 and all(map(np.array_equal, pictures, here))


@pytest.mark.parametrize(
    ("precision", "profile"),
    [(STRICT, "full_gpu"), (RELAXED, "full_gpu"), (RELAXED, "cpu_only")],  # guidance in one call of the model, or two
)
def test_alone_or_in_a_batch_of_four(precision: str, profile: str, make: Make) -> None:
    options = (precision, f"memory_profile={profile}", "memory_profile.batch_size=4")
    together = make(*options, "seed=40", "num_images=4")
    alone = [make(*options, f"seed={40 + i}")[0] for i in range(4)]
    assert len(together) == 4
    assert max(map(apart, together, alone)) <= LEVELS[precision]
    assert min(apart(alone[0], other) for other in alone[1:]) > 50


def test_under_every_profile(make: Make) -> None:
    pictures = {name: make(STRICT, f"memory_profile={name}", "seed=3")[0] for name in PROFILES}
    assert len(pictures) >= 4
    for picture in pictures.values():
        assert apart(picture, pictures["cpu_only"]) <= LEVELS[STRICT]


def test_a_profile_whose_components_take_turns(make: Make) -> None:
    # `balanced` sends a component away when its phase ends, so that the second request finds it come back.
    (first,) = make(STRICT, "memory_profile=balanced", "seed=3", anew=True)
    (second,) = make(STRICT, "memory_profile=balanced", "seed=3")
    assert np.array_equal(first, second)


def test_noise_in_the_steps_is_the_seeds_own(make: Make) -> None:
    options = (STRICT, "scheduler.eta=1")
    together = make(*options, "seed=5", "num_images=2")
    (alone,) = make(*options, "seed=6")
    assert np.array_equal(together[1], alone)
    assert apart(alone, make(STRICT, "seed=6")[0]) > 2  # it does draw


def test_the_jobs_of_a_sweep_and_a_file_of_prompts(make: Make, tmp_path: Path) -> None:
    prompts = ["a rocket on a blue background", "a cactus on a pink background"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    file = tmp_path / "prompts.txt"
    options = (*REQUEST[1:], STRICT, "tracking=none", "output.dir=sweep", "seed=9")
    swept = diffuse("-m", *options, "prompt=choice('" + "','".join(prompts) + "')", cwd=tmp_path)
    filed = diffuse(*options, f"prompt_file={file}", cwd=tmp_path)
    assert (swept.status, filed.status) == (0, 0), swept.err + filed.err
    for prompt, one, two in zip(prompts, swept.paths, filed.paths, strict=True):
        (single,) = make(STRICT, "seed=9", f"prompt={prompt}")
        assert np.array_equal(pixels(tmp_path / one), single)
        assert np.array_equal(pixels(tmp_path / two), single)


def test_a_drawn_seed_makes_the_picture_again(make: Make, tmp_path: Path) -> None:
    done = diffuse(*REQUEST, STRICT, "tracking=none", "output.dir=out", cwd=tmp_path)
    assert done.status == 0, done.err
    path = tmp_path / done.paths[0]
    seed = read_record(path)["request"]["seed"]
    assert np.array_equal(make(STRICT, f"seed={seed}")[0], pixels(path))
    assert seed != read_record(tmp_path / diffuse(*REQUEST, "tracking=none", cwd=tmp_path).paths[0])["request"]["seed"]


def test_nothing_draws_from_the_global_generator(make: Make) -> None:
    import torch

    (first,) = make(STRICT, "seed=7", "scheduler.eta=1", anew=True)
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    (second,) = make(STRICT, "seed=7", "scheduler.eta=1", anew=True)
    assert np.array_equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_store_holds_the_digest_of_the_decoded_file(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    done = diffuse(*REQUEST, f"tracking.uri=sqlite:///{store}", "seed=1", "num_images=2", cwd=tmp_path)
    assert done.status == 0 and "warning" not in done.err, done.err
    digests = [pixels_sha256(pixels(tmp_path / path)) for path in done.paths]
    with closing(sqlite3.connect(store)) as database:
        ((tag,),) = database.execute("select value from tags where key = 'diffuse.pixels_sha256'")
    (record,) = tmp_path.glob("mlartifacts/*/artifacts/record.json")
    assert tag.split() == digests
    assert [image["pixels_sha256"] for image in json.loads(record.read_text())["images"]] == digests
    media_there = {path.name: path for path in tmp_path.glob("mlartifacts/*/artifacts/media/*")}
    for path, digest in zip(done.paths, digests, strict=True):
        assert pixels_sha256(pixels(media_there[path.name])) == digest
