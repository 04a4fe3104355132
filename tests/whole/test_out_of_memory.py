"""Memory runs out in a run: it goes on with less from where it was, and finishes, or ends in one line."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from budget_ladder import overrides_of
from command import Done, diffuse
from little_memory import LittleMemory, failing_calls, live_bytes
from PIL import Image

from diffuse.device.placement import ManagedModule
from diffuse.media.load import read_record
from diffuse.models.text_encoder.clip import CLIPTextModel, CLIPTextModelWithProjection
from diffuse.models.unet.unet2d_condition import UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import Decoder, Encoder
from diffuse.run import open as opening

FEW = ("prompt=a cactus", "hardware=cpu", "hardware.threads=1", "memory_profile=full_gpu", "tracking=none")
RUN = (*FEW, "seed=3", "num_inference_steps=2", "num_images=2", "scheduler=euler_ancestral", "output.dir=out")
SHORT = ("num_inference_steps=1", "scheduler=ddim")
ERRORS = [
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory."),
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
]
NAMES = {"tiled_decode", "batch_size", "guidance", "cleanup", "resident_blocks"}


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> Iterator[None]:
    """Leaves what the imports have made out of the many searches for cycles."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """No pipeline of another test: its levers may be down, and its prompts encoded."""
    forget_pipelines()
    yield
    forget_pipelines()


def forget_pipelines() -> None:
    for pipeline in opening._pipelines.values():
        pipeline.memory.release_all()
    opening._pipelines.clear()


def run(cwd: Path, *overrides: Any, status: int = 0) -> Done:
    done = diffuse(*RUN, *overrides, cwd=cwd)
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    return done


def frames(done: Done, cwd: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(cwd / path)) for path in done.paths]).astype(int)


def levers(done: Done, cwd: Path) -> list[str]:
    events = read_record(cwd / done.paths[0]).get("step_downs", [])
    return [f"{event['component']} {event['step']} {event['lever']}={event['value']}" for event in events]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder)
    assert levers(done, folder) == []
    return frames(done, folder)


def test_a_run_goes_on_in_every_phase(undisturbed: np.ndarray, tmp_path: Path) -> None:
    """With noise in each step, so that a generator that went on too far would show."""
    encoder, denoiser, codec = (
        failing_calls(*which)
        for which in ((CLIPTextModel, {2}), (UNet2DConditionModel, {2, 3, 4, 5}), (Decoder, {1, 2}))
    )
    with encoder, denoiser, codec:
        done = run(tmp_path)
    assert levers(done, tmp_path) == [
        "text_encoder 0 cleanup=phases",
        "unet 1 batch_size=1",
        "unet 1 guidance=sequential",
        "unet 1 resident_blocks=9",
        "unet 1 resident_blocks=4",
        "vae 2 tiled_decode=True",
        "vae 2 resident_blocks=4",
    ]
    said = [line for line in done.err.splitlines() if "memory ran out" in line]
    assert len(said) == 7 and all("; went on with memory_profile." in line for line in said)
    assert np.abs(frames(done, tmp_path) - undisturbed).max() <= 2


def test_a_picture_to_start_from(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "in.png")
    request = ("input_image=in.png", "num_images=1")
    with failing_calls(Encoder, {1}):
        done = run(tmp_path, *request)
    assert levers(done, tmp_path) == ["vae 0 tiled_encode=True"]
    assert np.array_equal(frames(run(tmp_path, *request), tmp_path), frames(done, tmp_path))


def test_weights_that_do_not_arrive(tmp_path: Path, undisturbed: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive, left = ManagedModule.arrive, [2, 4]  # of all arrivals, those that fail

    def arrive_late(self: ManagedModule) -> Any:
        left[:] = [each - 1 for each in left]
        with LittleMemory(fail_at={2} if 0 in left else (), error=MemoryError):
            return arrive(self)

    monkeypatch.setattr(ManagedModule, "arrive", arrive_late)
    done = run(tmp_path)
    assert levers(done, tmp_path) == ["unet 0 cleanup=phases", "vae 2 resident_blocks=0"]
    assert "while the weights of the unet were loaded" in done.err
    assert np.array_equal(frames(done, tmp_path), undisturbed)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> LittleMemory:
    """The allocations of a short run, and their peak."""
    forget_pipelines()
    with LittleMemory() as memory:
        run(tmp_path_factory.mktemp("counted"), *SHORT)
    forget_pipelines()
    gc.collect()
    return memory


@pytest.mark.parametrize(
    ("kind", "calls", "expected"),
    [
        (
            "refined",
            {CLIPTextModelWithProjection: {2}, UNet2DConditionModel: {1, 4}, Decoder: {1}},
            [
                "refiner.text_encoder_2 0 cleanup=phases",
                "unet 0 batch_size=1",
                "refiner.unet 1 guidance=sequential",
                "refiner.vae 2 tiled_decode=True",
            ],
        ),
        (
            "inpaint",
            {Encoder: {1}, UNet2DConditionModel: {2}, Decoder: {1}},
            ["vae 0 tiled_encode=True", "unet 1 batch_size=1", "vae 2 tiled_decode=True"],
        ),
    ],
)
def test_in_each_phase_of_two_models_and_of_inpainting(
    kind: str, calls: dict[Any, set[int]], expected: list[str], checkpoints: Path, tmp_path: Path
) -> None:
    options = (*overrides_of(kind, checkpoints), "num_images=2", "num_inference_steps=2")
    undisturbed = run(tmp_path, *options)
    assert levers(undisturbed, tmp_path) == []
    forget_pipelines()
    before = live_bytes()
    with ExitStack() as stack:
        for module, which in calls.items():
            stack.enter_context(failing_calls(module, which))
        done = run(tmp_path, *options)
    assert levers(done, tmp_path) == expected
    assert np.abs(frames(done, tmp_path) - frames(undisturbed, tmp_path)).max() <= 2
    forget_pipelines()
    assert live_bytes() <= before


@pytest.mark.parametrize(("kind", "allowed"), [(UNet2DConditionModel, False), (CLIPTextModel, True)])
def test_a_run_that_cannot_go_on_ends_in_a_line(kind: Any, allowed: bool, tmp_path: Path) -> None:
    before = live_bytes()
    with failing_calls(kind, range(100)):
        done = run(tmp_path, f"memory_profile.step_down={allowed}", status=1)
    assert len([line for line in done.err.splitlines() if "ran out of memory in the" in line]) == 1
    assert ("even with" in done.err) is allowed and done.paths == []
    assert not list(tmp_path.rglob("*.*"))
    forget_pipelines()
    assert live_bytes() <= before


def test_a_device_with_a_cap(counted: LittleMemory, tmp_path: Path) -> None:
    """What is alive stays below the cap, because the batch is smaller from then on."""
    with LittleMemory(cap=counted.peak - 1) as capped:
        done = run(tmp_path, *SHORT)
    assert capped.failures and capped.peak < counted.peak
    assert {each.split()[2].partition("=")[0] for each in levers(done, tmp_path)} == {"batch_size"}


@pytest.mark.parametrize("number", range(3))
def test_random_allocations(counted: LittleMemory, tmp_path: Path, number: int) -> None:
    random = Random(number)
    fail_at = {random.randrange(1, counted.allocations // 2) for _ in range(1 + number)}
    with LittleMemory(fail_at, error=ERRORS[number]) as memory:
        done = diffuse(*RUN, *SHORT, cwd=tmp_path)
    assert "Traceback" not in done.err and memory.failures, fail_at
    if done.status:
        assert done.status == 1 and done.paths == [] and "ran out" in done.err.splitlines()[-1], fail_at
    else:
        assert levers(done, tmp_path), fail_at
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    forget_pipelines()
    gc.collect()
    assert memory.now <= counted.now, "something is still alive"


def test_reproduced_to_the_bit(tmp_path: Path) -> None:
    """What changed bits is done again at the same step, without memory running out again."""
    with failing_calls(UNet2DConditionModel, {2}), failing_calls(Decoder, {1}):
        done = run(tmp_path)
    forget_pipelines()
    again = diffuse("reproduce", done.paths[1], "tracking=none", "output.dir=again", cwd=tmp_path)
    assert again.status == 0 and "identical" in again.err, again.err
    assert again.err.count("as recorded, goes on with memory_profile.") == 2
    assert levers(again, tmp_path) == levers(done, tmp_path)
    other = diffuse("reproduce", done.paths[1], "tracking=none", "memory_profile=cpu_only", cwd=tmp_path)
    assert "where memory ran out: batch_size=1 from step 2, " in other.err, other.err


def test_a_sweep_goes_on_and_the_lever_stays_down(tmp_path: Path) -> None:
    options = (*FEW, "-m", "report.make=false", "num_inference_steps=1", "output.dir=out", "seed=1,2")
    axes = ("memory_profile.batch_size=2", "prompt=choice(a newt,an emu)")
    with failing_calls(UNet2DConditionModel, {1}) as calls:
        done = diffuse(*options[1:], *axes, cwd=tmp_path)
    assert done.status == 0 and len(done.paths) == 4, done.err
    assert calls == [1 + 2 + 2]
    records = [read_record(tmp_path / path) for path in done.paths]
    assert sorted(len(record.get("step_downs", ())) for record in records) == [0, 0, 1, 1]  # those of the first batch
    assert {record["hardware"]["memory_profile"]["batch_size"] for record in records} == {1, 2}


def test_a_sweep_goes_on_after_a_job_that_fails_of_it(tmp_path: Path) -> None:
    options = (*FEW, "-m", "report.make=false", "num_inference_steps=1", "output.dir=out", "seed=1")
    axes = ("memory_profile.step_down=false", "prompt=choice(a newt,an emu)")
    before = live_bytes()
    with failing_calls(UNet2DConditionModel, {2}):
        done = diffuse(*options[1:], *axes, cwd=tmp_path)
    assert done.status == 1 and len(done.paths) == 1 and "Traceback" not in done.err, done.err
    jobs = [json.loads(path.read_text()) for path in tmp_path.rglob("job.json")]
    assert sorted(job["status"] for job in jobs) == ["done", "failed"]
    (failed,) = [job for job in jobs if job["status"] == "failed"]
    assert failed["error"].startswith("OutOfMemory: the computer ran out of memory in the unet")
    forget_pipelines()
    assert live_bytes() <= before
