"""Sweeps: what is made, in which order and how many at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import diffuse, jobs_in
from PIL import Image
from sweeps import QUICK, pixels, swept

from diffuse.config.groups import PACKAGE
from diffuse.errors import OutOfMemory
from diffuse.media import images
from diffuse.media.load import read_record
from diffuse.pipelines import clip_prompts
from diffuse.run import run, start
from diffuse.run.prepare import prepare
from diffuse.schema import TrackingConfig
from diffuse.sweep.folder import Sweep
from diffuse.sweep.runner import JobRunner

TINY = PACKAGE / "tiny" / "checkpoint"


def singles(cwd: Path, *overrides: Any) -> list[np.ndarray]:
    done = diffuse(*QUICK, *overrides, cwd=cwd)
    assert done.status == 0, done.err
    return pixels(done, cwd)


def test_pixels_are_those_of_single_runs(tmp_path: Path, made: list[Any]) -> None:
    """Of batches within two levels; several images of a job, and a seed far from the others, among them."""
    four = "memory_profile.batch_pixels=16384"  # pictures of 64 x 64
    done = swept("seed=3,100,7", "num_inference_steps=2", "num_images=2", four, cwd=tmp_path)
    assert [[each["seed"] for each in batch] for batch in made] == [[3, 100], [7]]
    alone = [
        picture
        for seed in (3, 100, 7)
        for picture in singles(tmp_path, f"seed={seed}", "num_inference_steps=2", "num_images=2")
    ]
    for ours, theirs in zip(pixels(done, tmp_path), alone, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2
        assert ours.std() > 5
    assert [read_record(tmp_path / path)["image"]["seed"] for path in done.paths] == [3, 4, 100, 101, 7, 8]


def test_strict_pixels_are_those_of_single_runs_to_the_bit(tmp_path: Path, made: list[Any]) -> None:
    strict = ("hardware.deterministic=strict", "num_inference_steps=2", "scheduler=euler_ancestral")
    done = swept(*strict, "seed=range(0,3)", cwd=tmp_path)
    assert [len(batch) for batch in made] == [1, 1, 1]
    for seed, ours in enumerate(pixels(done, tmp_path)):
        assert np.array_equal(ours, singles(tmp_path, *strict, f"seed={seed}")[0])


def test_pictures_that_start_from_one(tmp_path: Path, made: list[Any]) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "in.png")
    request = ("input_image=in.png", "num_inference_steps=3", "strength=0.7")
    done = swept(*request, "seed=1,2", cwd=tmp_path)
    assert [len(batch) for batch in made] == [2]
    for seed, ours in zip((1, 2), pixels(done, tmp_path), strict=True):
        assert np.abs(ours.astype(int) - singles(tmp_path, *request, f"seed={seed}")[0]).max() <= 2


def test_a_picture_is_read_once_for_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And made to fit once for all that ask for the same size."""
    read, fitted = [], []
    content, fit = images._content, images.resize_image
    monkeypatch.setattr(images, "_content", lambda *which: read.append(which[0]) or content(*which))
    monkeypatch.setattr(images, "resize_image", lambda *what: fitted.append(what[1:3]) or fit(*what))
    for name, grey in (("in", 90), ("mask", 255), ("like", 40)):
        Image.fromarray(np.full((64, 64, 3), grey, np.uint8)).save(tmp_path / f"{name}.png")
    request = ("input_image=in.png", "mask_image=mask.png", "objective.reference=like.png", "width=64")
    swept(*request, "seed=1,2", "strength=0.5,1", "num_inference_steps=2,3", cwd=tmp_path)
    assert sorted(Path(path).name for path in read) == ["in.png", "like.png", "mask.png"]
    assert fitted == [(64, 64)] * 2


def test_what_is_costly_changes_least_and_paths_come_as_typed(
    tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "other")
    encoded: list[Any] = []
    encode = clip_prompts.encode

    def counting(model: Any, prompt: Any, **options: Any) -> Any:
        encoded.append(prompt.rows)
        return encode(model, prompt, **options)

    monkeypatch.setattr(clip_prompts, "encode", counting)
    # Texts of no other test: this process keeps what it has encoded.
    axes = ("seed=1,2", "prompt=choice(a wombat,a newt)", "num_inference_steps=1,2", f"model.source={TINY},other")
    done = swept(*axes, "negative_prompt=an emu", cwd=tmp_path)
    order = [(batch[0]["source"], batch[0]["prompt"], batch[0]["num_inference_steps"]) for batch in made]
    assert order == [
        (source, text, steps) for source in (str(TINY), "other") for text in ("a wombat", "a newt") for steps in (1, 2)
    ]
    assert all([each["seed"] for each in batch] == [1, 2] for batch in made)
    assert len(encoded) == 2 * 3  # both models encode each text once, the negative one among them
    shown = [read_record(tmp_path / path)["request"] for path in done.paths]
    typed = [
        (seed, text, steps) for seed in (1, 2) for text in ("a wombat", "a newt") for steps in (1, 2) for _ in "ab"
    ]
    assert [(each["seed"], each["prompt"], each["num_inference_steps"]) for each in shown] == typed


def test_a_job_given_twice_is_done_once(tmp_path: Path, made: list[Any]) -> None:
    done = swept("seed=1,1,2", "num_inference_steps=1", cwd=tmp_path)
    assert [each["seed"] for batch in made for each in batch] == [1, 2]
    assert len(done.paths) == 2
    assert done.err.startswith("2 jobs: 2 made, 0 were there, 0 failed, 1 given twice, in ")


def test_a_batch_that_fails_is_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it was too large for the memory, the next ones are smaller."""
    compute, sizes = run.compute, []

    def little_memory(jobs: Any, *rest: Any) -> Any:
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise OutOfMemory("the unet ran out of memory") from torch.OutOfMemoryError()
        return compute(jobs, *rest)

    monkeypatch.setattr(run, "compute", little_memory)
    assert len(swept("seed=range(0,8)", "num_inference_steps=1", cwd=tmp_path).paths) == 8
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_all_is_closed_also_where_something_cannot_be(tmp_path: Path) -> None:
    def fail() -> list[str]:
        raise OSError("a worker that does not end")

    runner = JobRunner(Sweep("x", "x", tmp_path, [], []), TrackingConfig(name="none"))
    closed: list[str] = []
    runner._saver.submit(lambda: closed.append("saved"))
    runner.on_close += [fail, lambda: closed.append("other") or []]  # type: ignore[func-returns-value]
    with pytest.raises(OSError, match="does not end"):
        runner.close()
    assert sorted(closed) == ["other", "saved"]
    assert not runner._saver._threads


def test_what_was_chosen_for_a_budget_is_said_once(tmp_path: Path) -> None:
    """Jobs of other shapes with the same levers have no line of their own; it is no warning."""
    budget = ("hardware=cpu", "memory_profile=full_gpu", "memory_profile.budget_gib=1")
    done = swept("seed=1", "width=64,72", "num_inference_steps=1", *budget, cwd=tmp_path)
    (line,) = [line for line in done.err.splitlines() if "memory_profile within" in line]
    assert line.startswith("memory_profile within 1 GiB of the device: full_gpu; predicted ")


def test_the_record_of_a_job_in_a_batch_is_that_of_the_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(started: Any, cfg: Any, draft: Any, *rest: Any) -> Any:
        return start.start_run(prepare(cfg, draft, opened=started.prepared.opened), *rest)

    found = []
    for name in ("batch", "alone"):
        (tmp_path / name).mkdir()
        swept("output.dir=out?api_token=hunter2", "seed=1,2,3", "num_inference_steps=2", cwd=tmp_path / name)
        jobs = jobs_in(tmp_path / name / "out?api_token=hunter2")
        for said in jobs:
            assert "hunter2" not in json.dumps(said["record"])
            for drawn in ("created", "timings"):
                del said["record"][drawn]
            del said["metrics"], said["worker"]
        found.append(jobs)
        monkeypatch.setattr(start, "start_similar_run", alone)
    assert [said["record"]["request"]["seed"] for said in found[0]] == [1, 2, 3]
    assert found[0] == found[1]
