"""Sweeps: what is made, in which order and how many at once; what a job is known by; and what is done again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Done, diffuse, jobs_in
from damaged import damaged, mend
from PIL import Image
from safetensors.torch import load_file, save_file

from diffuse import compare, sweep
from diffuse.config import compose as configuration
from diffuse.config.compose import PACKAGE
from diffuse.errors import ConfigError, RunError
from diffuse.media import images
from diffuse.media.load import image_sha256, read_record
from diffuse.pipelines import clip_prompts
from diffuse.run import run
from diffuse.sweep import job, launcher

TINY = PACKAGE / "tiny" / "checkpoint"
QUICK = ("hardware=cpu", "hardware.threads=1", "tracking=none", "report.make=false", "output.dir=out")


CALLBACK = "hydra.experimental.callbacks.LogJobReturnCallback"


def swept(*overrides: Any, cwd: Path, status: int = 0) -> Done:
    done = diffuse("-m", *QUICK, *overrides, cwd=cwd)
    assert done.status == status, done.err
    return done


def pixels(done: Done, cwd: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(cwd / path)) for path in done.paths]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The batches that were made, each as the requests in it."""
    batches = []
    make = run.make

    def watched(jobs: Any, *rest: Any) -> Any:
        batches.append([{"source": each.cfg.model.source, **vars(each.request)} for each in jobs])
        return make(jobs, *rest)

    monkeypatch.setattr(run, "make", watched)
    return batches


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
    monkeypatch.setattr(clip_prompts, "encode", lambda *rest: encoded.append(rest[1].rows) or encode(*rest))
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
    make, sizes = run.make, []

    def little_memory(jobs: Any, *rest: Any) -> Any:
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise RunError("the unet ran out of memory") from torch.OutOfMemoryError()
        return make(jobs, *rest)

    monkeypatch.setattr(run, "make", little_memory)
    assert len(swept("seed=range(0,8)", "num_inference_steps=1", cwd=tmp_path).paths) == 8
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_the_record_of_a_job_in_a_batch_is_that_of_the_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(begun: Any, cfg: Any, draft: Any, *about: Any) -> Any:
        return run.begin(run.prepare(cfg, draft, opened=begun.job.opened), *about)

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
        monkeypatch.setattr(run, "begin_like", alone)
    assert [said["record"]["request"]["seed"] for said in found[0]] == [1, 2, 3]
    assert found[0] == found[1]


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    taken = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(taken, fcntl.LOCK_EX)
    done = swept("seed=1,2", "num_inference_steps=1", cwd=tmp_path, status=2)
    assert "out: another process makes a sweep in it" in done.err and not list((tmp_path / "out").iterdir())
    os.close(taken)  # as the end of a process does, however it comes
    assert len(swept("seed=1,2", "num_inference_steps=1", cwd=tmp_path).paths) == 2


def test_only_what_is_missing_is_made_again(tmp_path: Path, made: list[Any]) -> None:
    """Missing is what is not there, not what was made, or not what it was made from."""
    shutil.copytree(TINY, tmp_path / "model")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "in.png")
    command = ("seed=range(0,4)", "num_inference_steps=2", "model.source=model", "input_image=in.png")
    first = swept(*command, cwd=tmp_path)
    before = pixels(first, tmp_path)
    gone, cut, painted, kept = (tmp_path / path for path in first.paths)
    shutil.rmtree(gone.parent)
    cut.write_bytes(cut.read_bytes()[:-100])
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(painted)
    (kept.parent / ".diffuse-0.tmp").write_text("left by an attempt that was killed")
    stamp = kept.stat().st_mtime_ns
    made.clear()

    again = swept(*reversed(command), cwd=tmp_path)
    assert sorted(each["seed"] for batch in made for each in batch) == [0, 1, 2]
    assert kept.stat().st_mtime_ns == stamp and "3 made, 1 were there" in again.err
    for ours, theirs in zip(pixels(again, tmp_path), before, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2
    # What somebody painted over is theirs; the picture gets a number.
    assert not np.asarray(Image.open(painted)).any() and again.paths[2].name == f"{painted.stem}_1.png"

    made.clear()
    assert "0 made, 4 were there" in swept(*command, cwd=tmp_path).err and not made

    Image.fromarray(np.full((64, 64, 3), 91, np.uint8)).save(tmp_path / "in.png")
    assert "4 made, 0 were there" in swept(*command, cwd=tmp_path).err
    (file,) = (tmp_path / "model" / "vae").glob("*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"] += 0.1
    file.unlink()
    save_file(tensors, file)
    assert "4 made, 0 were there" in swept(*command, cwd=tmp_path).err


def test_another_sweep_in_the_same_folder_uses_what_is_there(tmp_path: Path) -> None:
    swept("seed=1,2", "num_inference_steps=1", cwd=tmp_path)
    assert "2 made, 2 were there" in swept("seed=1,2", "num_inference_steps=1,2", cwd=tmp_path).err
    assert "2 made, 0 were there" in swept("seed=1,2", "num_inference_steps=1", "output.format=jpg", cwd=tmp_path).err
    assert "0 made, 2 were there" in swept("seed=1,2", "num_inference_steps=1", "output.format=jpg", cwd=tmp_path).err


def test_failed_jobs_are_recorded_and_tried_again(tmp_path: Path) -> None:
    model = damaged(tmp_path / "model")
    command = ("seed=1", f"model.source=model,{TINY}", "num_inference_steps=1")
    done = swept(*command, cwd=tmp_path, status=1)
    assert len(done.paths) == 1 and "1 made, 0 were there, 1 failed" in done.err
    assert "diffuse: model.source=model: the vae gave NaN" in done.err
    failed = next(each for each in jobs_in(tmp_path / "out") if each["status"] == "failed")
    assert "NaN" in failed["error"] and failed["media"] == [] and failed["record"]["request"]["seed"] == 1
    mend(model)
    assert "1 made, 1 were there, 0 failed" in swept(*command, cwd=tmp_path).err
    assert {each["status"] for each in jobs_in(tmp_path / "out")} == {"done"}


def test_what_job_json_says(tmp_path: Path) -> None:
    done = swept("seed=5", "num_inference_steps=1", "output.format=webp", cwd=tmp_path)
    (said,) = jobs_in(tmp_path / "out")
    whole = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (whole["version"], whole["axes"], whole["jobs"], whole["seed"]) == (1, [], 1, None)
    assert {*QUICK, "seed=5"} <= {*whole["overrides"]}
    assert (said["sweep"], said["status"], said["error"]) == (whole["identity"], "done", None)
    assert done.paths[0].parent.name.endswith(said["key"][:8])
    assert said["media"] == [{"file": done.paths[0].name, "pixels_sha256": image_sha256(tmp_path / done.paths[0])}]
    assert said["record"]["request"]["seed"] == 5 and "seed=5" in said["overrides"]


def plan(*overrides: str, **options: Any) -> sweep.Sweep:
    return sweep.plan(configuration.quote(overrides, sweep=True), overrides, **options)[0]


def test_a_sweep_is_known_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = plan("seed=range(0,3)", "num_inference_steps=5,10", "width=64")
    assert one.folder == Path("outputs/sweeps") / one.identity[:12] and one.jobs == 6
    same = plan("num_inference_steps=10,5", "width=64", "seed=0,1,2", "tracking=none", "report.make=false")
    assert same.identity == one.identity
    others = [
        plan("seed=range(0,4)", "num_inference_steps=5,10", "width=64"),
        plan("seed=range(0,3)", "num_inference_steps=5,10", "width=72"),
        plan("seed=range(0,3)", "guidance_scale=5,10", "width=64"),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 4


def test_any_name_of_a_folder(tmp_path: Path) -> None:
    done = swept("seed=1,2", "num_inference_steps=1", "output.dir=a, (b) = [c]/caf\udce9", cwd=tmp_path)
    assert len(list((tmp_path / "a, (b) = [c]" / "caf\udce9").glob("seed_*/*.png"))) == len(done.paths) == 2


def test_a_drawn_seed_stays(tmp_path: Path) -> None:
    first = swept("num_inference_steps=1,2", cwd=tmp_path)
    seeds = {read_record(tmp_path / path)["request"]["seed"] for path in first.paths}
    assert len(seeds) == 1
    assert swept("num_inference_steps=1,2", cwd=tmp_path).paths == first.paths
    assert len(swept("num_inference_steps=1,2", "width=72", cwd=tmp_path).paths) == 2
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["seed"] not in seeds


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("seed=range(0,0)",), ("seed=range(0,0)", "is empty")),
        (("seed=range(0,5,0)",), ("never ends",)),
        (("seed=range(0,10000)", "guidance_scale=range(1,2,0.001)"), ("10,000,000 jobs", "--yes")),
        (("seed=1,2", "report.sheets=true,false"), ("report.sheets=true,false", "the same for all jobs")),
        (("seed=1,2", "tracking=none,mlflow"), ("tracking=none,mlflow", "the same for all jobs")),
        (("guidance_scale=interval(1,2)",), ("guidance_scale", "has no steps")),
        (("prompt=choice(a,b)", "prompt_file=x"), ("prompt_file", "leave one of them out")),
        (("seed=${hydra:job.num}", "width=64,72"), ("seed=${hydra:job.num}", "has no job.num", "as ${FIELD}")),
        (("seed=1,2", f"+hydra.callbacks.x._target_={CALLBACK}"), ("LogJobReturnCallback.on_job_end", "=basic")),
    ],
)
def test_a_sweep_that_cannot_be(overrides: tuple[str, ...], said: tuple[str, ...], tmp_path: Path) -> None:
    begin = time.process_time()
    done = diffuse("-m", *overrides, cwd=tmp_path)
    assert time.process_time() - begin < 5
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert all(text in done.err for text in said), done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", ["y", ""])
def test_many_jobs_are_asked_about(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: f"{answer}\n", raising=False)
    many = ("seed=range(0,20000)",)
    if answer:
        assert plan(*many).jobs == 20000
    else:
        with pytest.raises(ConfigError, match="nothing was made"):
            plan(*many)
    assert "20,000 jobs" in capsys.readouterr().err
    assert plan(*many, yes=True).jobs == 20000


def test_a_file_of_prompts_is_an_axis(tmp_path: Path, made: list[Any]) -> None:
    texts = ["a cat, (black) = ${hydra:job.num}", 'a "dog"\\', "null"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    done = swept("prompt_file=prompts.txt", "seed=1,2", "num_inference_steps=1", cwd=tmp_path)
    records = [read_record(tmp_path / path) for path in done.paths]
    assert [(each["request"]["seed"], each["request"]["prompt"]) for each in records] == [
        (seed, text) for seed in (1, 2) for text in texts
    ]
    assert [len(batch) for batch in made] == [2, 2, 2]
    again = diffuse(*QUICK, *records[0]["overrides"], cwd=tmp_path)
    assert again.status == 0 and read_record(tmp_path / again.paths[0])["request"]["prompt"] == texts[0]


@pytest.mark.parametrize(
    ("name", "jobs"),
    [("seeds_by_steps", 12), ("scheduler_shootout", 24), ("prompt_matrix", 12), ("strength_ladder", 10)],
)
def test_ready_made_sweeps(name: str, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sweeps by themselves, and what is typed goes before what they say."""
    monkeypatch.chdir(tmp_path)
    assert sweep.by_itself([f"experiment={name}"]) and plan(f"experiment={name}").jobs == jobs
    assert plan(f"experiment={name}").name == name
    Image.new("RGB", (64, 64)).save("in.png")
    fewer = {"strength_ladder": ("input_image=in.png", "strength=0.6,1.0", "seed=0")}
    axes = fewer.get(name, ("seed=0", "num_inference_steps=1,2", "scheduler=ddim", "prompt=choice(a,b)"))
    done = diffuse(f"experiment={name}", *QUICK, *axes, cwd=tmp_path)
    assert done.status == 0 and len(done.paths) == (2 if name in fewer else 4), done.err


def test_the_report_costs_a_sweep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("-m", *QUICK, "report.make=true", "seed=1,2", "num_inference_steps=1")

    def broken(folder: Path, wanted: Any = None) -> list[Path]:
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(compare, "report", broken)
        done = diffuse(*command, cwd=tmp_path)
    assert done.status == 0 and len(done.paths) == 2 and "warning: there is no report: OSError: no room" in done.err
    done = diffuse(*command, cwd=tmp_path)  # all is there but the report
    assert done.status == 0 and "report out/report/" in done.err, done.err
    assert "report out/report/" not in diffuse(*command, cwd=tmp_path).err


def test_what_hydra_says_of_a_job(tmp_path: Path) -> None:
    """It is in the job's values, whatever the order."""
    for name, grey in (("ddim", 50), ("euler", 200)):
        Image.new("RGB", (64, 64), (grey,) * 3).save(tmp_path / f"{name}.png")
    command = ("input_image=${hydra:runtime.choices.scheduler}.png", "num_inference_steps=2", "seed=1")
    done = swept(*command, "scheduler=ddim,euler", cwd=tmp_path)
    records = [read_record(tmp_path / path) for path in done.paths]
    assert [each["request"]["input_image"] for each in records] == ["ddim.png", "euler.png"]
    assert [each["config"]["input_image"] for each in records] == ["ddim.png", "euler.png"]
    again = swept(*command, "scheduler=euler,ddim", cwd=tmp_path)
    assert "0 made, 2 were there" in again.err and again.paths == done.paths[::-1]

    # All that is the job's own, which is not known before its values are.
    shared = "hardware,hardware.threads,tracking,report.make,output.dir,input_image"
    named = ("input_image=${hydra:job.override_dirname}.png", "num_inference_steps=2,3", "seed=1")
    for steps in (2, 3):
        shutil.copy(tmp_path / "ddim.png", tmp_path / f"num_inference_steps={steps},seed=1.png")
    done = swept(*named, f"hydra.job.config.override_dirname.exclude_keys=[{shared}]", cwd=tmp_path)
    records = [read_record(tmp_path / path) for path in done.paths]
    assert [each["request"]["num_inference_steps"] for each in records] == [2, 3]


def test_jobs_are_composed_as_hydra_composes_them(tmp_path: Path) -> None:
    """The jobs of one choice of groups share what that gives; each is what Hydra's own composition gives."""
    seen: list[tuple[list[str], dict[str, Any]]] = []
    look = launcher.Composer.load_sweep_config

    def watched(self: Any, master_config: Any, sweep_overrides: Any) -> Any:
        cfg = look(self, master_config, sweep_overrides)
        seen.append((list(sweep_overrides), job.identity(configuration.resolved(cfg))))
        return cfg

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launcher.Composer, "load_sweep_config", watched)
        axes = (
            "scheduler=ddim,euler",
            "experiment=seeds_by_steps,prompt_matrix",
            "seed=1,2",
            "model.request_defaults.width=72,80",
        )
        swept(*axes, "scheduler.timestep_spacing=trailing", "width=65", cwd=tmp_path, status=2)
    assert len({tuple(lines) for lines, _ in seen}) == 16
    for lines, values in seen[:16]:
        assert values == job.identity(configuration.resolved(configuration.composed(lines)))
